"""Metrics of generated reports, from measures of each sample that add up over a corpus.

Sums are kept rather than scores, so that a resample of patients is scored as a corpus: BLEU of a
corpus is no mean of the BLEU of its texts.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from mstar.downstream.statistics.evaluated import ratio

Measures = Float[np.ndarray, "sample column"]
Weights = Int[np.ndarray, "resample sample"]
Values = Float[np.ndarray, " resample"]
Row = tuple[str, str, bool, Callable[[Measures, Weights], Values]]

KIND = "report_generation"
ORDERS = (1, 2, 3, 4)
NOT_MEASURED = -1.0
GENERATION_COLUMNS: tuple[str, ...] = (
    *(f"matches_{order}" for order in ORDERS),
    *(f"ngrams_{order}" for order in ORDERS),
    *("words", "reference_words", "meteor", "meteor_wordnet", "rouge_l"),
    *("facts_right", "facts_by_chance", "facts_told", "facts_true"),
    *("nll", "tokens", "unfinished", "empty"),
)
"""Columns of a sample.

matches, ngrams: runs of so many words that the text shares with its reference (each as often as it
    comes there), and all of the text.
words, reference_words: of the text and of the whole reference.
meteor, meteor_wordnet, rouge_l: of this text; meteor_wordnet is -1 where WordNet was not there.
facts_right, facts_told, facts_true: planted findings that the text names rightly, that it names,
    and that there are. facts_by_chance: that it would name rightly as the text of another case of
    the same group, in the mean over those; equal to facts_right where there is none.
nll, tokens: negative log-likelihood of the reference's tokens, as far as they are trained on, and
    how many they are.
unfinished, empty: 1 for a text that was cut at the longest length, and for one without a word.
"""


def column(name: str) -> int:
    """Where a measure is."""
    return GENERATION_COLUMNS.index(name)


def bleu(order: int) -> Callable[[Measures, Weights], Values]:
    """Corpus BLEU of runs of up to `order` words, without smoothing (Papineni et al. 2002)."""
    matches = [column(f"matches_{n}") for n in ORDERS[:order]]
    ngrams = [column(f"ngrams_{n}") for n in ORDERS[:order]]
    lengths = [column("words"), column("reference_words")]

    def function(measures: Measures, weights: Weights) -> Values:
        drawn = weights.astype(np.float64)
        right, all_of = drawn @ measures[:, matches], drawn @ measures[:, ngrams]
        words, reference = (drawn @ measures[:, lengths]).T
        with np.errstate(divide="ignore"):  # no match: log 0, a BLEU of 0
            precision = np.log(np.divide(right, np.maximum(all_of, 1.0))).mean(axis=1)
            brevity = np.minimum(
                0.0,
                1.0 - np.divide(reference, words, where=words > 0, out=np.full_like(words, np.inf)),
            )
        return np.asarray(np.exp(precision + brevity))

    return function


def mean(name: str) -> Callable[[Measures, Weights], Values]:
    """The mean over samples; undefined where a sample was not measured."""

    def function(measures: Measures, weights: Weights) -> Values:
        own, drawn = measures[:, column(name)].astype(np.float64), weights.astype(np.float64)
        found: Values = ratio(drawn @ own, drawn.sum(axis=1))
        return np.full_like(found, np.nan) if bool((own == NOT_MEASURED).any()) else found

    return function


def share(top: str, bottom: str, minus: str = "") -> Callable[[Measures, Weights], Values]:
    """A quotient of sums."""

    def function(measures: Measures, weights: Weights) -> Values:
        own = measures[:, column(top)].astype(np.float64)
        if minus:
            own = own - measures[:, column(minus)]
        drawn = weights.astype(np.float64)
        return ratio(drawn @ own, drawn @ measures[:, column(bottom)].astype(np.float64))

    return function


ROWS: tuple[Row, ...] = (
    *((f"bleu_{order}", KIND, True, bleu(order)) for order in ORDERS),
    *((name, KIND, True, mean(name)) for name in ("meteor", "meteor_wordnet", "rouge_l")),
    ("fact_recall", KIND, True, share("facts_right", "facts_true")),
    ("fact_precision", KIND, True, share("facts_right", "facts_told")),
    ("fact_recall_by_chance", KIND, True, share("facts_by_chance", "facts_true")),
    ("fact_gain", KIND, True, share("facts_right", "facts_true", "facts_by_chance")),
    ("token_nll", KIND, False, share("nll", "tokens")),
    ("unfinished", KIND, False, mean("unfinished")),
    ("empty", KIND, False, mean("empty")),
)
"""Name, kind, whether more is better, function; `fact_gain` is the recall beyond chance."""
