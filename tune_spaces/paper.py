"""The paper's one configuration: Adam 2e-4, decay 1e-5, cosine over 30 epochs, one bag a step."""

from mstar.downstream.spaces import Space

SPACE = Space()
