"""RNA counts: an oracle on planted genes finds every factor; other genes and library size none."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB

from mstar.cohorts.generated.config import CANCER_TYPES, GenerateConfig
from mstar.cohorts.generated.expression import cohort_arrays, write_expression
from mstar.cohorts.generated.factors import CaseFactors, iter_cases
from mstar.cohorts.generated.gene_table import FACTOR_GENES, OTHER_GENES, TYPE_GENES, genes_of

NUM_CASES = 1500
# Area under the curve of the planted genes' signed mean, as the docs state it.
STATED_AUC = {"mutation": 0.97, "grade": 0.93, "pathway": 0.9, "hazard": 0.84, "BRCA": 0.9}
CHANCE = 0.055  # of 1,350 measured cases: 3.5 standard errors

Measured = tuple[list[CaseFactors], pd.DataFrame, pd.DataFrame]


def make(**fields: object) -> GenerateConfig:
    fields = {"cases": NUM_CASES, "num_genes": 300} | fields
    return GenerateConfig(out="unused", **fields)  # type: ignore[arg-type]


def measure(folder: Path, config: GenerateConfig) -> Measured:
    """The cases that were measured, log counts per million [case, gene], and the genes' truth."""
    cases = [case for case in iter_cases(config) if case.has_rna]
    write_expression(str(folder), config, list(iter_cases(config)))
    counts = pd.read_csv(folder / "rna.tsv", sep="\t", index_col=0).T
    truth = pd.read_csv(folder / "truth/genes.csv", index_col="gene", keep_default_na=False)
    return cases, counts, truth


def log_cpm(counts: pd.DataFrame) -> pd.DataFrame:
    return np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e6)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure(tmp_path_factory.mktemp("rna"), make())


def oracle(measured: Measured, factor: str) -> np.ndarray:
    _, counts, truth = measured
    planted = truth[truth["factor"] == factor]
    return (log_cpm(counts)[planted.index] * planted["direction"]).mean(axis=1).to_numpy()


def truth_of(cases: list[CaseFactors], factor: str) -> np.ndarray:
    """The factor as two classes."""
    values = cohort_arrays(make(), cases).factors[factor]
    return values > (0.0 if factor in (*CANCER_TYPES, "mutation") else np.median(values))


@pytest.mark.parametrize("factor", sorted(STATED_AUC))
def test_planted_genes_tell_their_factor(factor: str, measured: Measured) -> None:
    found = roc_auc_score(truth_of(measured[0], factor), oracle(measured, factor))
    assert found > STATED_AUC[factor]


@pytest.mark.parametrize("factor", ["grade", "pathway", "BRCA", "LUAD"])
def test_genes_of_another_factor_do_not_tell_the_mutation(factor: str, measured: Measured) -> None:
    found = roc_auc_score(truth_of(measured[0], "mutation"), oracle(measured, factor))
    assert found == pytest.approx(0.5, abs=CHANCE)


def test_genes_that_follow_nothing_tell_nothing(measured: Measured) -> None:
    cases, counts, truth = measured
    genes = truth.index[truth["factor"] == ""]
    assert len(genes) > 150
    values = log_cpm(counts)[genes].to_numpy()
    mutated = truth_of(cases, "mutation")
    scores = cross_val_predict(GaussianNB(), values, mutated, cv=5, method="predict_proba")
    assert roc_auc_score(mutated, scores[:, 1]) == pytest.approx(0.5, abs=CHANCE)


@pytest.mark.parametrize("factor", sorted(STATED_AUC))
def test_library_size_tells_nothing(factor: str, measured: Measured) -> None:
    cases, counts, _ = measured
    found = roc_auc_score(truth_of(cases, factor), counts.sum(axis=1))
    assert found == pytest.approx(0.5, abs=CHANCE)


def test_without_strength_planted_genes_tell_nothing(tmp_path: Path) -> None:
    weak = measure(tmp_path, make(rna_strength=0.0, num_genes=200))
    for factor in ("mutation", "grade", "BRCA"):
        found = roc_auc_score(truth_of(weak[0], factor), oracle(weak, factor))
        assert found == pytest.approx(0.5, abs=CHANCE), factor


def test_library_sizes_differ_and_sites_have_batches(measured: Measured, tmp_path: Path) -> None:
    cases, counts, truth = measured
    library = counts.sum(axis=1)
    assert 1.5 < library.quantile(0.95) / library.quantile(0.05) < 6
    sites = np.array([case.site for case in cases])
    genes = truth.index[truth["factor"] == ""]
    assert site_share(log_cpm(counts)[genes], sites) > 0.08
    _, calm, _ = measure(tmp_path, make(site_effect=0.0))
    assert site_share(log_cpm(calm)[genes], sites) < 0.02


def site_share(values: pd.DataFrame, sites: np.ndarray) -> float:
    """Mean share of a gene's variance that lies between sites."""
    between = values.groupby(sites).transform("mean").var() / values.var()
    return float(between.mean())


def test_counts_are_whole_spread_over_magnitudes_and_overdispersed(measured: Measured) -> None:
    _, counts, _ = measured
    values = counts.to_numpy()
    assert values.dtype == np.int64
    assert values.min() >= 0
    means = counts.mean()
    assert means.quantile(0.95) / means.quantile(0.05) > 20
    assert (counts.var() / means).median() > 10


def test_the_table_is_genes_by_cases_with_one_row_a_symbol(measured: Measured) -> None:
    cases, counts, truth = measured
    assert list(counts.index) == [case.case_id for case in cases]
    assert counts.shape[1] == 300
    assert counts.columns.is_unique
    assert list(counts.columns) == list(truth.index)
    assert len(cases) < NUM_CASES  # some were missing


def test_symbols_are_listed_once_and_every_type_finds_room() -> None:
    listed = " ".join([*FACTOR_GENES.values(), *TYPE_GENES.values(), OTHER_GENES]).split()
    assert len(set(listed)) == len(listed) > 400
    smallest = genes_of(make(num_genes=200, num_cancer_types=8))
    assert len({gene.symbol for gene in smallest}) == 200
    pairs: dict[tuple[str, int], list[int]] = {}
    for gene in smallest:
        if gene.factor:
            pairs.setdefault((gene.factor, gene.pair), []).append(gene.direction)
    assert all(sorted(directions) == [-1, 1] for directions in pairs.values())
    assert {factor for factor, _ in pairs} == {*FACTOR_GENES, *CANCER_TYPES}


def test_equal_settings_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        measure(tmp_path / name, make(cases=20, num_genes=200))
    assert (tmp_path / "a/rna.tsv").read_bytes() == (tmp_path / "b/rna.tsv").read_bytes()
    measure(tmp_path / "c", make(cases=20, num_genes=200, seed=1))
    assert (tmp_path / "a/rna.tsv").read_bytes() != (tmp_path / "c/rna.tsv").read_bytes()


def test_a_thousand_cases_take_seconds(tmp_path: Path) -> None:
    start_s = time.process_time()
    write_expression(str(tmp_path), make(num_genes=1000), list(iter_cases(make(cases=1000))))
    assert time.process_time() - start_s < 8
