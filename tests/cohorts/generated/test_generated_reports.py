"""Report texts: an oracle on their words finds every factor; fillers and length find none."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import BernoulliNB

from mstar.cohorts.generated import grammar, reports
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, iter_cases
from mstar.data.reports import read_reports

NUM_CASES = 600
# Area under the curve of a word oracle, as the docs state it: at default strength and noise.
STATED_AUC = {"mutation": 0.9, "grade": 0.9, "cancer_type": 0.9, "pathway": 0.9, "hazard": 0.85}
CHANCE = 0.08  # of 600 cases: more than 3 standard errors


def make(**fields: object) -> GenerateConfig:
    fields = {"cases": NUM_CASES} | fields
    return GenerateConfig(out="unused", **fields)  # type: ignore[arg-type]


def texts_of(config: GenerateConfig) -> tuple[list[CaseFactors], list[str]]:
    cases = list(iter_cases(config))
    return cases, [reports.compose(config, case) for case in cases]


@pytest.fixture(scope="module")
def made() -> tuple[list[CaseFactors], list[str]]:
    return texts_of(make())


@pytest.fixture(scope="module")
def many() -> tuple[list[CaseFactors], list[str]]:
    return texts_of(make(cases=2000))


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"-\n", "", text))


def word_auc(texts: Sequence[str], truth: np.ndarray, phrases: Sequence[str]) -> float:
    """Cross-validated macro area of naive Bayes on the words and word pairs of `phrases`."""
    terms = CountVectorizer(ngram_range=(1, 2), binary=True).fit(phrases)
    counts = terms.transform([one_line(text) for text in texts])
    scores = cross_val_predict(BernoulliNB(), counts, truth, cv=5, method="predict_proba")
    if scores.shape[1] == 2:
        return float(roc_auc_score(truth, scores[:, 1]))
    return float(roc_auc_score(truth, scores, multi_class="ovr"))


def phrases_of(factor: str) -> list[str]:
    table = grammar.FINDINGS.get(factor) or tuple(grammar.CANCER_TYPE_PHRASES.values())
    return [phrase for phrases in table for phrase in phrases]


def levels(config: GenerateConfig, cases: Sequence[CaseFactors], factor: str) -> np.ndarray:
    return np.array([reports.levels_of(config, case)[factor][0] for case in cases])


@pytest.mark.parametrize("factor", sorted(STATED_AUC))
def test_words_tell_every_factor(factor: str, made: tuple[list[CaseFactors], list[str]]) -> None:
    cases, texts = made
    found = word_auc(texts, levels(make(), cases, factor), phrases_of(factor))
    assert found > STATED_AUC[factor]


@pytest.mark.parametrize("factor", ["mutation", "cancer_type"])
def test_without_strength_words_tell_nothing(factor: str) -> None:
    config = make(report_strength=0.0)
    cases, texts = texts_of(config)
    found = word_auc(texts, levels(config, cases, factor), phrases_of(factor))
    assert found == pytest.approx(0.5, abs=CHANCE)


def test_irrelevant_words_tell_nothing(made: tuple[list[CaseFactors], list[str]]) -> None:
    cases, texts = made
    fillers = [filler.format_map(_Slots()) for filler in grammar.FILLERS]
    found = word_auc(texts, levels(make(), cases, "mutation"), fillers)
    assert found == pytest.approx(0.5, abs=CHANCE)


class _Slots(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "positive or negative" if key == "pn" else "0"


@pytest.mark.parametrize("factor", sorted(STATED_AUC))
def test_length_tells_nothing(factor: str, many: tuple[list[CaseFactors], list[str]]) -> None:
    cases, texts = many
    lengths = np.array([len(text) for text in texts])
    truth = levels(make(), cases, factor)
    for level in np.unique(truth):
        found = roc_auc_score(truth == level, lengths)
        assert found == pytest.approx(0.5, abs=0.06)


def test_a_noiseless_report_states_every_finding_truly() -> None:
    config = make(noise=0.0, cases=40)
    for case, text in zip(*texts_of(config), strict=True):
        flat = one_line(text)
        for factor, (level, _) in reports.levels_of(config, case).items():
            phrases = (
                grammar.CANCER_TYPE_PHRASES[case.cancer_type]
                if factor == "cancer_type"
                else grammar.FINDINGS[factor][level]
            )
            assert any(phrase in flat for phrase in phrases), (factor, flat)


def test_noise_misreads_letters_and_silences_findings() -> None:
    clean, noisy = (texts_of(make(noise=noise))[1] for noise in (0.0, 3.0))
    vocabulary = {word for text in clean for word in one_line(text).lower().split()}
    unknown = [
        np.mean([word not in vocabulary for t in texts for word in one_line(t).lower().split()])
        for texts in (texts_of(make(cases=50))[1], noisy[:50])
    ]
    assert 0.005 < unknown[0] < 0.05
    assert unknown[1] > 2 * unknown[0]
    said = [sum("p53" in one_line(t) or "TP53" in one_line(t) for t in ts) for ts in (clean, noisy)]
    assert said[0] == NUM_CASES
    assert said[1] < 0.9 * NUM_CASES


def test_reports_are_broken_into_lines_some_within_words(
    made: tuple[list[CaseFactors], list[str]],
) -> None:
    lines = [line for text in made[1] for line in text.split("\n")]
    assert max(map(len, lines)) <= 110
    assert 0.003 < np.mean([line.endswith("-") for line in lines]) < 0.3


def all_phrases() -> list[str]:
    return [phrase for factor in STATED_AUC for phrase in phrases_of(factor)]


def test_no_phrase_is_of_two_levels_and_fillers_hold_none() -> None:
    phrases = all_phrases()
    assert len(set(phrases)) == len(phrases)
    for phrase in phrases:
        assert not any(phrase in other for other in phrases if other != phrase)
        assert not any(phrase.lower() in filler.lower() for filler in grammar.FILLERS)


def test_the_table_reads_back(tmp_path: Path) -> None:
    config = make(cases=60, missing_report=0.3)
    cases, texts = texts_of(config)
    uri = str(tmp_path / "sources/reports_raw.csv")
    written = reports.write_reports(uri, config, cases)
    table = read_reports(uri)
    with_report = [(c.case_id, t) for c, t in zip(cases, texts, strict=True) if c.has_report]
    assert written == len(with_report) < 60
    assert [(case_id, report.text) for case_id, report in table.items()] == with_report


def test_a_thousand_reports_take_seconds() -> None:
    start_s = time.process_time()
    texts_of(make(cases=1000))
    assert time.process_time() - start_s < 5
