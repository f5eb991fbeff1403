"""What is counted of a generated text and its reference: columns of `GENERATION_COLUMNS`.

BLEU's counts are sacrebleu's, ROUGE-L is rouge-score's F1, METEOR is NLTK's: all of the same words
(`words_of`), against the whole reference.

METEOR matches equal words and equal Porter stems, with NLTK's settings (alpha 0.9, beta 3, gamma
0.5). With NLTK's WordNet corpus on the machine the same is computed with synonyms too, as
`meteor_wordnet`; the column `meteor` never depends on what is installed. The article's METEOR is
the Java program 1.5, which adds paraphrases and weighs function words less: its numbers are others.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from mstar.downstream.report_generation.facts import FactCounts, Facts
from mstar.downstream.report_generation.words import words_of
from mstar.downstream.statistics.generation import (
    GENERATION_COLUMNS,
    NOT_MEASURED,
    ORDERS,
    column,
)

LONGEST_ROUGE = 4_000_000  # cells of the table of a longest common subsequence
logging.getLogger("absl").setLevel(logging.WARNING)  # rouge-score tells of its tokenizer


def text_measures(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    cases: Sequence[str] = (),
    facts: Facts | None = None,
    overlap: bool = True,
) -> Float32[np.ndarray, "sample column"]:
    """The measures of texts; those of training (nll, tokens, unfinished) are 0.

    Args:
        texts: generated.
        references: whole, one a text.
        cases: ids, where there are facts.
        facts: known to be true of the cases.
        overlap: METEOR and ROUGE-L too, which take most of the time.
    """
    found = np.zeros((len(texts), len(GENERATION_COLUMNS)), np.float32)
    found[:, column("meteor_wordnet")] = NOT_MEASURED
    for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
        own, true = words_of(text), words_of(reference)
        found[row, : 2 * len(ORDERS) + 2] = _bleu_counts(own, true)
        found[row, column("empty")] = not own
        if overlap and own:
            found[row, column("rouge_l")] = rouge_l(own, true)
            found[row, column("meteor")] = meteor(own, true)
        if overlap and wordnet() is not None:
            found[row, column("meteor_wordnet")] = meteor(own, true, wordnet()) if own else 0.0
    if facts is not None:
        _put_facts(found, facts.count(cases, texts))
    return found


def meteor(words: Sequence[str], reference: Sequence[str], lexicon: Any = None) -> float:
    """METEOR by equal words and stems, and by synonyms of a lexicon where one is given."""
    from nltk.translate.meteor_score import single_meteor_score

    if not words or not reference:
        return 0.0
    return float(single_meteor_score(reference, words, wordnet=lexicon or _NoSynonyms()))


def rouge_l(words: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence."""
    if not words or not reference:
        return 0.0
    score = _rouge().score(" ".join(reference), " ".join(words))
    return float(score["rougeL"].fmeasure)


@functools.lru_cache(maxsize=1)
def wordnet() -> Any:
    """NLTK's WordNet, or None where its corpus is not on the machine; nothing is downloaded."""
    from nltk.corpus import wordnet as corpus

    try:
        corpus.synsets("tumour")
    except (LookupError, OSError):
        return None
    return corpus


class _NoSynonyms:
    """A lexicon in which no word has synonyms."""

    @staticmethod
    def synsets(word: str) -> list[Any]:
        """None."""
        return []


class _Blanks:
    """rouge-score's tokenizer of texts that are words already."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        """Their words."""
        return text.split()


@functools.lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Blanks())


@functools.lru_cache(maxsize=1)
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", smooth_method="none", effective_order=True)


def _bleu_counts(words: Sequence[str], reference: Sequence[str]) -> list[float]:
    """Matches and runs of each length, words of the text and of the reference."""
    if not words:
        return [0.0] * 9 + [float(len(reference))]
    score = _bleu().sentence_score(" ".join(words), [" ".join(reference)])
    return [float(n) for n in (*score.counts, *score.totals, score.sys_len, score.ref_len)]


def _put_facts(found: Float32[np.ndarray, "sample column"], counts: FactCounts) -> None:
    for name, values in (
        ("facts_right", counts.right),
        ("facts_by_chance", counts.chance),
        ("facts_told", counts.told),
        ("facts_true", counts.true),
    ):
        found[:, column(name)] = values
