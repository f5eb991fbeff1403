"""Finished runs applied to new slides: tiled and embedded where needed, scored, written."""
