"""Units and logarithms are known or stated, and the numbers are held against them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mstar.data.rna.config import ExpressionConfig, Transform
from mstar.data.rna.scale import named_unit, to_linear
from mstar.errors import TableError
from support.rna_tables import RSEM, as_frame, build, cbioportal, linear_frame, reference, write_tsv


def tpm_frame(num_cases: int = 6) -> pd.DataFrame:
    frame = linear_frame(num_cases, tuple(f"G{i}" for i in range(60)))
    return (frame / frame.sum() * 1e6).round(6)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("data_mrna_seq_v2_rsem.txt", "rsem"),
        ("HiSeqV2.gz", "rsem"),
        ("tcga_RSEM_gene_tpm.gz", "tpm"),
        ("tcga_gene_expected_count.gz", "counts"),
        ("TCGA-BRCA.htseq_counts.tsv.gz", "counts"),
        ("TCGA-BRCA.htseq_fpkm.tsv.gz", "fpkm"),
        ("BRCA.RSEM_genes_normalized__data.data.txt", "rsem"),
        ("normalized_count", "rsem"),
        ("tcga_RSEM_Hugo_norm_count", "rsem"),
        ("TCGA-BRCA.star_tpm.tsv.gz", "tpm"),
        ("rna.tsv", None),
        ("accounts.tsv", None),
    ],
)
def test_names_of_public_files_say_their_unit(name: str, unit: str | None) -> None:
    assert named_unit(name) == unit


def test_a_unit_that_nothing_says_must_be_stated(tmp_path: Path) -> None:
    source = write_tsv(tmp_path / "rna.tsv", cbioportal(linear_frame()))
    with pytest.raises(TableError, match="State the unit: rsem, tpm"):
        build(source, tmp_path / "o", ExpressionConfig())
    assert build(source, tmp_path / "o", RSEM)[0].unit == "rsem"


def test_a_stated_unit_that_the_name_denies_is_noted(tmp_path: Path) -> None:
    source = write_tsv(tmp_path / "x_fpkm.tsv", cbioportal(linear_frame()))
    _, summary = build(source, tmp_path / "o", RSEM)
    assert any("taken as rsem, as stated; its name says fpkm" in note for note in summary.notes)


def test_logged_values_are_refused_until_they_are_stated(tmp_path: Path) -> None:
    frame = linear_frame()
    source = write_tsv(tmp_path / "t.tsv", cbioportal(np.log2(frame + 1)))
    with pytest.raises(
        TableError, match=r"they look like logarithms\. State the transform: log2p1"
    ):
        build(source, tmp_path / "o")
    assert not (tmp_path / "o").exists()
    store, summary = build(source, tmp_path / "as_is", replace(RSEM, transform="none"))
    np.testing.assert_allclose(as_frame(store), reference(np.log2(frame + 1)), rtol=1e-6)
    assert summary.transform == "none"
    store, _ = build(source, tmp_path / "undone", replace(RSEM, transform="log2p1"))
    np.testing.assert_allclose(as_frame(store), reference(frame), rtol=1e-6)


def test_linear_values_are_not_taken_for_logged_ones(tmp_path: Path) -> None:
    source = write_tsv(tmp_path / "t.tsv", cbioportal(linear_frame()))
    with pytest.raises(
        TableError, match=r"case TCGA-\S+: expected lnp1 values, none above 50, got"
    ):
        build(source, tmp_path / "o", replace(RSEM, transform="lnp1"))


def test_logged_cases_among_linear_ones_are_refused(tmp_path: Path) -> None:
    frame = linear_frame()
    frame.iloc[:, 2] = np.log2(frame.iloc[:, 2] + 1)
    source = write_tsv(tmp_path / "t.tsv", cbioportal(frame))
    with pytest.raises(TableError, match=rf"1 cases, the first {frame.columns[2]}, have no value"):
        build(source, tmp_path / "o")


@pytest.mark.parametrize("transform", ["log2p1", "lnp1", "log10p1", "log2p0.001"])
def test_every_logarithm_is_undone(transform: Transform) -> None:
    linear = np.array([[0.0, 1.0, 7.25, 1e5]])
    logged = {
        "log2p1": np.log2(linear + 1),
        "lnp1": np.log(linear + 1),
        "log10p1": np.log10(linear + 1),
        "log2p0.001": np.log2(linear + 0.001),
    }[transform]
    found = to_linear(logged.round(9), transform)
    np.testing.assert_allclose(found, linear, rtol=1e-6, atol=1e-7)
    assert found[0, 0] >= 0


def test_toil_zeros_are_no_negative_numbers(tmp_path: Path) -> None:
    frame = tpm_frame()
    source = write_tsv(tmp_path / "toil_tpm.tsv", cbioportal(np.log2(frame + 0.001).round(4)))
    with pytest.raises(TableError, match=r"not negative, got -9\.9658"):
        build(source, tmp_path / "o", ExpressionConfig(transform="log2p1"))
    store, _ = build(source, tmp_path / "o", ExpressionConfig(transform="log2p0.001"))
    np.testing.assert_allclose(as_frame(store), reference(frame), rtol=1e-3, atol=1e-4)


def test_tpm_is_known_by_its_totals(tmp_path: Path) -> None:
    tpm, rsem = tpm_frame(), linear_frame(6, tuple(f"G{i}" for i in range(60)), high=200_000.0)
    as_rsem = write_tsv(tmp_path / "a.tsv", cbioportal(tpm))
    with pytest.raises(TableError, match="expected rsem, got 6 of 6 cases that sum to 1,000,000"):
        build(as_rsem, tmp_path / "o", RSEM)
    assert build(as_rsem, tmp_path / "o", ExpressionConfig(unit="tpm"))[0].unit == "tpm"
    as_tpm = write_tsv(tmp_path / "b.tsv", cbioportal(rsem))
    with pytest.raises(TableError, match="expected TPM, which sum to 1,000,000 per case, got"):
        build(as_tpm, tmp_path / "o", ExpressionConfig(unit="tpm"))
    mixed = pd.concat([rsem.iloc[:, :3], tpm.iloc[:, 3:]], axis=1)
    source = write_tsv(tmp_path / "c.tsv", cbioportal(mixed))
    for unit in ("rsem", "tpm"):
        with pytest.raises(TableError, match="3 of 6 cases"):
            build(source, tmp_path / "o", ExpressionConfig(unit=unit))  # type: ignore[arg-type]


def test_totals_are_of_the_whole_table_not_of_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("G1\nG2\n")
    config = replace(RSEM, gene_list=str(tmp_path / "genes.txt"))
    with pytest.raises(TableError, match="sum to 1,000,000"):
        build(write_tsv(tmp_path / "t.tsv", cbioportal(tpm_frame())), tmp_path / "o", config)
