"""mSTAR platform: pretrain, embed and evaluate pathology foundation models at cluster scale."""

__version__ = "0.1.0"
