"""Metrics of generated reports: against sacrebleu on corpora, against plain definitions."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from mstar.downstream.report_generation.facts import Facts, find_facts
from mstar.downstream.report_generation.measures import meteor, rouge_l, text_measures, wordnet
from mstar.downstream.report_generation.words import word_places, words_of
from mstar.downstream.statistics.bootstrap import fold_estimate
from mstar.downstream.statistics.evaluated import Evaluated, once
from mstar.downstream.statistics.generation import GENERATION_COLUMNS, NOT_MEASURED, column
from mstar.downstream.statistics.metrics import METRICS, value_of

RNG = np.random.default_rng(0)
WORDS = "the tumour is well poorly differentiated grade low margin clear of".split()


def texts(number: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        " ".join(rng.choice(WORDS[:3], int(rng.integers(0 if at == 3 else 1, 18))))
        for at in range(number)
    ]


def evaluated(measures: np.ndarray, patients: list[str] | None = None) -> Evaluated:
    names = patients or [f"p{at}" for at in range(len(measures))]
    return Evaluated(patients=tuple(names), scores=measures.astype(np.float64))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_of_every_resample_is_that_of_its_corpus(order: int) -> None:
    ours, references = texts(12, 0), texts(12, 1)
    measures = evaluated(text_measures(ours, references, overlap=False))
    weights = RNG.integers(0, 3, (30, 12)).astype(np.int32)
    found = METRICS[f"bleu_{order}"].function(measures, weights)
    reference = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
    for row, value in zip(weights, found, strict=True):
        drawn = [at for at, times in enumerate(row) for _ in range(times)]
        corpus = reference.corpus_score([ours[at] for at in drawn],
                                        [[references[at] for at in drawn]])  # fmt: skip
        assert value == pytest.approx(corpus.score / 100, abs=1e-6)
    assert len(set(np.round(found, 6))) > 10


def test_bleu_counts_the_whole_reference_so_that_a_cut_one_would_read_high() -> None:
    reference = " ".join(WORDS)
    short = " ".join(WORDS[:6])
    whole = evaluated(text_measures([short], [reference]))
    cut = evaluated(text_measures([short], [short]))
    assert value_of("bleu_4", cut) == 1.0
    assert value_of("bleu_4", whole) == pytest.approx(np.exp(1 - len(WORDS) / 6), abs=1e-6)
    assert value_of("rouge_l", whole) == pytest.approx(2 * 6 / (6 + len(WORDS)), abs=1e-6)


def test_a_text_without_a_word_scores_nothing_and_is_counted() -> None:
    measures = evaluated(text_measures(["", " ?! "], ["the tumour", "is clear"]))
    for metric in ("bleu_1", "bleu_4", "meteor", "rouge_l"):
        assert value_of(metric, measures) == 0.0
    assert value_of("empty", measures) == 1.0


def longest_common(one: list[str], other: list[str]) -> int:
    best = 0
    for size in range(len(one), 0, -1):
        for chosen in itertools.combinations(range(len(one)), size):
            rest = iter(other)
            if all(one[at] in rest for at in chosen):
                return size
        best = 0
    return best


@pytest.mark.parametrize("seed", range(8))
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (list(rng.choice(WORDS[:4], int(rng.integers(2, 9)))) for _ in range(2))
    common = longest_common(one, other)
    assert rouge_l(one, other) == pytest.approx(2 * common / (len(one) + len(other)))


def test_meteor_matches_words_and_stems_and_needs_no_wordnet() -> None:
    """NLTK's: F = 10 P R / (R + 9 P), less half of the cubed share of chunks."""
    true = "the margins are clear of tumour".split()
    assert meteor(true, true) == pytest.approx(1 - 0.5 * (1 / 6) ** 3)
    stems = "the margin are clear of tumours".split()
    assert meteor(stems, true) == pytest.approx(1 - 0.5 * (1 / 6) ** 3)
    half = "the margins are".split()
    precision, recall = 1.0, 0.5
    f = 10 * precision * recall / (recall + 9 * precision)
    assert meteor(half, true) == pytest.approx(f * (1 - 0.5 * (1 / 3) ** 3))
    assert meteor("neoplasm".split(), "tumour".split()) == 0.0


def test_synonyms_count_where_a_lexicon_is_given_and_never_otherwise() -> None:
    assert meteor(["neoplasm"], ["tumour"], Lexicon()) > 0.4
    assert meteor(["neoplasm"], ["tumour"]) == 0.0


class Lexicon:
    """A lexicon of one synonym, as NLTK's METEOR asks for it."""

    @staticmethod
    def synsets(word: str) -> list["Lexicon"]:
        return [Lexicon()] if word in ("neoplasm", "tumour") else []

    def lemmas(self) -> list["Lexicon"]:
        return [self]

    def name(self) -> str:
        return "tumour"


def test_meteor_with_wordnet_is_undefined_where_wordnet_is_not() -> None:
    measures = text_measures(["the tumour"], ["the tumour"])
    value = value_of("meteor_wordnet", evaluated(measures))
    if wordnet() is None:
        assert measures[0, column("meteor_wordnet")] == NOT_MEASURED
        assert np.isnan(value)
    else:
        assert value > 0.9


def test_words_are_letters_and_digits_of_any_script() -> None:
    assert words_of("TTF-1 positive; Größe: 3,5 µm_x") == [
        "ttf", "1", "positive", "größe", "3", "5", "µm", "x",
    ]  # fmt: skip
    assert [text for text, _ in word_places("A b-2")] == ["a", "b", "2"]


FACTS = Facts(
    levels={
        "a": {"cancer_type": "X", "grade": "1", "mutation": "yes"},
        "b": {"cancer_type": "X", "grade": "2"},
        "c": {"cancer_type": "Y", "grade": "1"},
    },
    phrases={
        "cancer_type": {"X": ("type x",), "Y": ("type y",)},
        "grade": {"1": ("well differentiated", "grade 1"), "2": ("poorly differentiated",)},
        "mutation": {"yes": ("tp53 variant is detected",), "no": ("no tp53 variant",)},
    },
)


def test_facts_are_right_when_the_true_level_alone_is_named() -> None:
    said = [
        "Well-differentiated. A TP53 variant is detected!",
        "grade 1, poorly differentiated",  # both levels: told, and not right
        "upgrade 1",  # another word
    ]
    counts = FACTS.count(["a", "b", "c"], said)
    assert counts.true.tolist() == [2, 1, 1]
    assert counts.told.tolist() == [2, 1, 0]
    assert counts.right.tolist() == [2, 0, 0]


def test_chance_is_what_texts_of_others_of_the_group_would_have_right() -> None:
    said = ["well differentiated", "well differentiated", "grade 1"]
    counts = FACTS.count(["a", "b", "c"], said)
    assert counts.right.tolist() == [1, 0, 1]
    assert counts.chance.tolist() == [1, 0, 1]  # c is alone in its group: its own
    swapped = FACTS.count(["a", "b", "c"], ["well differentiated", "poorly differentiated", ""])
    assert swapped.right.tolist() == [1, 1, 0]
    assert swapped.chance.tolist() == [0, 0, 0]
    measures = text_measures(["well differentiated", "poorly differentiated", ""],
                             ["x", "x", "x"], cases=["a", "b", "c"], facts=FACTS)  # fmt: skip
    own = evaluated(measures)
    assert value_of("fact_recall", own) == pytest.approx(2 / 4)
    assert value_of("fact_gain", own) == pytest.approx(2 / 4)
    assert value_of("fact_precision", own) == 1.0


def test_facts_of_a_folder_and_of_none(tmp_path: Path) -> None:
    assert find_facts(str(tmp_path)) is None
    (tmp_path / "facts.csv").write_text("case_id,fact,level\na,grade,1\n")
    (tmp_path / "fact_phrases.csv").write_text("fact,level,phrase\ngrade,1,Grade I!\n")
    found = find_facts(str(tmp_path))
    assert found is not None
    assert found.told("It is grade i.") == {"grade": frozenset({"1"})}


def test_metrics_without_facts_are_undefined_and_patients_are_resampled_whole() -> None:
    ours, references = texts(10, 0), texts(10, 1)
    measures = text_measures(ours, references)
    assert measures.shape == (10, len(GENERATION_COLUMNS))
    assert np.isnan(value_of("fact_recall", evaluated(measures)))
    twice = evaluated(np.concatenate([measures, measures]), [f"p{at % 10}" for at in range(20)])
    rows = evaluated(np.concatenate([measures, measures]))
    narrow = fold_estimate("rouge_l", [rows], resamples=400)
    wide = fold_estimate("rouge_l", [twice], resamples=400)
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 1.15 * (narrow.high - narrow.low)
    assert METRICS["bleu_1"].function(rows, once(20)).shape == (1,)
