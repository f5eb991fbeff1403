"""The words of a text, as all metrics and facts take them."""

import re

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits in small letters; punctuation goes, as in the paper's metrics."""
    return _WORD.findall(text.lower())


def word_places(text: str) -> list[tuple[str, tuple[int, int]]]:
    """The words, and where in the text each stands."""
    return [(found.group().lower(), found.span()) for found in _WORD.finditer(text)]
