"""Whole-slide images: opening, pixels, resolution, tissue and grids. Knows no cluster."""
