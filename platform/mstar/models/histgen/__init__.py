"""HistGen: from a bag of patch features to a report, written from the paper's description.

config     sizes
attention  multi-head attention, plain and over the strongest slots of a memory
encoder    patches → regions → one token a region
decoder    tokens of a region and of the text → the next token
model      the whole, teacher-forced
decoding   greedy and beam search with kept keys and values

Guo et al., HistGen: Histopathology Report Generation via Local-Global Feature Encoding and
Cross-modal Context Interaction, MICCAI 2024.
"""

from mstar.models.histgen.config import DecodingConfig, HistGenConfig
from mstar.models.histgen.decoding import Generated, generate, greedy
from mstar.models.histgen.model import HistGen

__all__ = ["DecodingConfig", "Generated", "HistGen", "HistGenConfig", "generate", "greedy"]
