"""Preprocessing equals a few lines of pandas, whatever the format, order and block size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from mstar.config import to_dict
from mstar.data.rna import expression, text_matrix
from mstar.data.rna.expression import ExpressionConfig
from mstar.errors import ConfigError, TableError
from support.rna_tables import (
    GENES,
    RSEM,
    as_frame,
    build,
    cbioportal,
    linear_frame,
    reference,
    write_tsv,
)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_equal(store: object, expected: pd.DataFrame) -> None:
    assert_frame_equal(as_frame(store), expected, rtol=1e-6, check_names=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["sum", "mean", "max", "first"])
def test_a_cbioportal_table_equals_pandas(tmp_path: Path, rule: str) -> None:
    frame = linear_frame(genes=(*GENES, "EGFR", "SLC35E2", "SLC35E2"))
    source = write_tsv(tmp_path / "t.tsv", cbioportal(frame))
    config = replace(RSEM, duplicate_genes=rule)  # type: ignore[arg-type]
    store, summary = build(source, tmp_path / "out", config)
    assert_equal(store, reference(frame, rule))
    assert store.rows(store.case_ids).dtype == np.float32
    assert (summary.num_cases, summary.num_genes, summary.num_repeated_rows) == (6, 7, 3)


@settings(max_examples=15, deadline=None)
@given(
    num_cases=st.integers(1, 9),
    picks=st.lists(st.integers(0, 11), min_size=1, max_size=20),
    seed=st.integers(0, 1000),
    block=st.integers(40, 4_000),
    budget=st.integers(1, 2_000),
)
def test_any_table_equals_pandas_in_blocks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory,
    num_cases: int,
    picks: list[int],
    seed: int,
    block: int,
    budget: int,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    frame = linear_frame(num_cases, tuple(f"GENE{pick}" for pick in picks), seed)
    wide = write_tsv(folder / "t.tsv", cbioportal(frame))
    config = replace(RSEM, transform="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_matrix, "_BLOCK_BYTES", block)
        patch.setattr(expression, "_BUDGET_BYTES", budget)
        store, _ = build(wide, folder / "small", config)
    assert_equal(store, reference(frame))
    build(wide, folder / "large", config)
    assert files_of(folder / "small") == files_of(folder / "large")


@pytest.fixture(params=["tsv", "csv", "tsv.gz", "parquet", "cases.csv", "cases.parquet", "r.tsv"])
def any_format(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same numbers in every format and both orientations."""
    frame, path = linear_frame(), tmp_path / f"t.{request.param}"
    transposed = frame.T.rename_axis("case_id").reset_index()
    if request.param in ("tsv", "tsv.gz"):
        return write_tsv(path, cbioportal(frame))
    if request.param == "csv":
        cbioportal(frame).to_csv(path, index=False, quoting=2)
    elif request.param == "parquet":
        cbioportal(frame).to_parquet(path)
    elif request.param == "cases.csv":
        transposed.to_csv(path, index=False)
    elif request.param == "cases.parquet":
        frame.T.to_parquet(path)  # names in an index without a name
    else:  # R: quoted names, no corner
        path.write_text(frame.to_csv(sep="\t", quoting=2).removeprefix('""\t'))
    return str(path)


def test_every_format_and_orientation_gives_the_same_bytes(any_format: str, tmp_path: Path) -> None:
    store, _ = build(any_format, tmp_path / "out")
    assert_equal(store, reference(linear_frame()))
    build(write_tsv(tmp_path / "plain.tsv", cbioportal(linear_frame())), tmp_path / "plain")
    for name in ("values.npy", "rows.csv", "genes.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_the_order_of_rows_and_columns_changes_nothing(tmp_path: Path) -> None:
    frame = linear_frame(9)
    shuffled = frame.sample(frac=1, random_state=1).sample(frac=1, axis=1, random_state=2)
    build(write_tsv(tmp_path / "a.tsv", cbioportal(frame)), tmp_path / "a")
    build(write_tsv(tmp_path / "b.tsv", cbioportal(shuffled)), tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_only_the_samples_to_keep_are_kept_under_their_cases(tmp_path: Path) -> None:
    frame = linear_frame()
    keep = {frame.columns[4]: "case 4", frame.columns[1]: "case 1"}
    store, summary = build(
        write_tsv(tmp_path / "t.tsv", cbioportal(frame)), tmp_path / "o", keep=keep
    )
    assert store.case_ids == ("case 1", "case 4")
    expected = reference(frame[list(keep)].rename(columns=keep))
    assert_equal(store, expected)
    assert (summary.num_samples, summary.num_samples_left_out) == (6, 4)


@pytest.mark.parametrize("cases_by_genes", [False, True])
def test_samples_to_keep_in_both_orientations_and_small_blocks(
    tmp_path: Path, cases_by_genes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_matrix, "_BLOCK_BYTES", 100)
    frame = linear_frame(8)
    keep = {name: name for name in frame.columns[[0, 3, 7]]}
    table = frame.T.rename_axis("case_id").reset_index() if cases_by_genes else cbioportal(frame)
    store, _ = build(write_tsv(tmp_path / "t.tsv", table), tmp_path / "o", keep=keep)
    assert_equal(store, reference(frame[list(keep)]))


def test_samples_that_are_not_there_or_share_a_case_are_refused(tmp_path: Path) -> None:
    frame = linear_frame()
    source = write_tsv(tmp_path / "t.tsv", cbioportal(frame))
    with pytest.raises(TableError, match="1 are not in it, the first TCGA-XX"):
        build(source, tmp_path / "o", keep={frame.columns[0]: "a", "TCGA-XX": "b"})
    with pytest.raises(TableError, match="case a has a second sample"):
        build(source, tmp_path / "o", keep=dict.fromkeys(frame.columns[:2], "a"))
    assert not (tmp_path / "o").exists()


def test_tables_are_joined_by_cases_and_never_across_units(tmp_path: Path) -> None:
    frame = linear_frame(6)
    first, second = frame.iloc[:, :4], frame.iloc[2:, 4:]
    one = write_tsv(tmp_path / "one_rsem.tsv", cbioportal(first))
    two = write_tsv(tmp_path / "two_rsem.tsv", cbioportal(second))
    store, summary = build([one, two], tmp_path / "o", ExpressionConfig())
    assert_equal(store, reference(pd.concat([first, second], axis=1).fillna(0.0)))
    assert summary.absent_genes == (0, 2)
    tpm = write_tsv(tmp_path / "two_tpm.tsv", cbioportal(second))
    with pytest.raises(TableError, match=r"expected rsem as .*one_rsem.tsv has it, got tpm"):
        build([one, tpm], tmp_path / "mixed", ExpressionConfig())
    with pytest.raises(TableError, match="has a second sample"):
        build([one, one], tmp_path / "mixed", ExpressionConfig())
    with pytest.raises(ConfigError, match="got none"):
        build([], tmp_path / "mixed")


@pytest.mark.parametrize("base", ["e", "2", "10"])
def test_the_base_of_the_stored_logarithm_is_a_setting(tmp_path: Path, base: str) -> None:
    frame = linear_frame()
    config = replace(RSEM, log_base=base)  # type: ignore[arg-type]
    store, _ = build(write_tsv(tmp_path / "t.tsv", cbioportal(frame)), tmp_path / "o", config)
    divisor = np.log({"e": np.e, "2": 2.0, "10": 10.0}[base])
    assert_frame_equal(
        as_frame(store), (reference(frame) / divisor).astype("f4"), rtol=1e-5, check_names=False
    )
    assert store.facts["values"] == f"log(x + 1), base {base}"


def test_cells_that_are_missing_are_refused_or_filled_as_stated(tmp_path: Path) -> None:
    frame = linear_frame()
    frame.iloc[2, 3] = np.nan
    source = write_tsv(tmp_path / "t.tsv", cbioportal(frame))
    with pytest.raises(
        TableError, match=rf"row 3, column {frame.columns[3]} \(gene MYC\): .*an empty cell"
    ):
        build(source, tmp_path / "o")
    store, summary = build(source, tmp_path / "zero", replace(RSEM, missing_cells="zero"))
    assert_equal(store, reference(frame.fillna(0.0)))
    assert summary.num_missing_cells == 1
    assert any("1 empty cells were filled: zero" in note for note in summary.notes)
    store, _ = build(source, tmp_path / "mean", replace(RSEM, missing_cells="mean"))
    assert_equal(store, reference(frame.T.fillna(frame.mean(axis=1)).T))


def test_negative_cells_are_refused_or_counted_as_zero(tmp_path: Path) -> None:
    frame = linear_frame()
    frame.iloc[4, 5] = -0.25
    source = write_tsv(tmp_path / "t.tsv", frame.T.rename_axis("case_id").reset_index())
    name = rf"row 6, column SLC35E2 \(sample {frame.columns[5]}\)"
    with pytest.raises(
        TableError, match=rf"{name}: expected a number that is not negative, got -0.25"
    ):
        build(source, tmp_path / "o")
    store, summary = build(source, tmp_path / "o", replace(RSEM, negative_cells="zero"))
    assert_equal(store, reference(frame.clip(lower=0.0)))
    assert summary.num_negative_cells == 1


def test_a_case_without_expression_is_named(tmp_path: Path) -> None:
    frame = linear_frame()
    frame.iloc[:, 2] = 0.0
    store, summary = build(write_tsv(tmp_path / "t.tsv", cbioportal(frame)), tmp_path / "o")
    assert summary.zero_cases == (frame.columns[2],)
    assert store.zero_cases == {frame.columns[2]}


def vocabulary_file(folder: Path, genes: list[str], dim: int = 4) -> Path:
    path = folder / "gene2vec.txt"
    rows = [f"{g}\t" + " ".join(str(i + j / 8) for j in range(dim)) for i, g in enumerate(genes)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_gene2vec_file_gives_the_vocabulary_its_order_and_frozen_vectors(tmp_path: Path) -> None:
    frame = linear_frame()
    genes = ["PTEN", "BRCA2", "TP53", "MYC"]
    config = replace(RSEM, gene_vectors=str(vocabulary_file(tmp_path, genes)))
    store, summary = build(write_tsv(tmp_path / "t.tsv", cbioportal(frame)), tmp_path / "o", config)
    assert list(store.genes) == genes
    expected = reference(frame).reindex(columns=genes).fillna(np.float32(0))
    assert_equal(store, expected)
    assert store.gene_vectors is not None
    assert store.gene_vectors[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert (summary.absent_genes, summary.num_rows_outside_vocabulary) == ((1,), 4)
    assert (summary.vocabulary, summary.notes) == ("gene_vectors", ())


def test_without_gene_vectors_a_loud_note_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, summary = build(
        write_tsv(tmp_path / "t.tsv", cbioportal(linear_frame())), tmp_path / "o"
    )
    assert store.gene_vectors is None
    assert summary.notes[0].startswith("NO GENE2VEC FILE: gene vectors will be LEARNED")
    assert summary.notes[0] in caplog.text


def test_genes_that_a_table_lacks_are_counted_and_filled_as_stated(tmp_path: Path) -> None:
    frame = linear_frame()
    source = write_tsv(tmp_path / "t.tsv", cbioportal(frame))
    listed = tmp_path / "genes.txt"
    listed.write_text("# mine\nMYC\nABSENT\nTP53\n")
    config = replace(RSEM, gene_list=str(listed))
    plain = reference(frame)
    for policy, filled in (("zero", 0.0), ("mean", plain[["MYC", "TP53"]].mean(axis=1))):
        config = replace(config, absent_genes=policy)  # type: ignore[arg-type]
        store, summary = build(source, tmp_path / policy, config)
        expected = plain[["MYC", "TP53"]].assign(ABSENT=filled)[["MYC", "ABSENT", "TP53"]]
        assert_equal(store, expected.astype(np.float32))
        assert summary.absent_genes == (1,)
    store, _ = build(source, tmp_path / "drop", replace(config, absent_genes="drop"))
    assert store.genes == ("MYC", "TP53")
    with pytest.raises(TableError, match="1 are not in it, the first ABSENT"):
        build(source, tmp_path / "error", replace(config, absent_genes="error"))


def test_ids_of_another_kind_are_refused_unless_mapped(tmp_path: Path) -> None:
    frame = linear_frame(genes=("ENSG00000141510.18", "ENSG00000146648.21"))
    table = frame.rename_axis("Ensembl_ID").reset_index()
    source = write_tsv(tmp_path / "t.tsv", table)
    listed = tmp_path / "genes.txt"
    listed.write_text("TP53\nEGFR\n")
    config = replace(RSEM, gene_list=str(listed))
    with pytest.raises(TableError, match=r"at least 50% .* such as TP53, got 0.*gene_map"):
        build(source, tmp_path / "o", config)
    mapped = tmp_path / "probemap.tsv"
    mapped.write_text(
        "id\tgene\tchrom\nENSG00000141510.11\tTP53\tchr17\nENSG00000146648.16\tEGFR\tchr7\n"
    )
    store, _ = build(source, tmp_path / "o", replace(config, gene_map=str(mapped)))
    expected = reference(frame.set_axis(["TP53", "EGFR"]))[["TP53", "EGFR"]]
    assert_equal(store, expected)


def test_the_summary_is_plain_and_lies_in_the_store(tmp_path: Path) -> None:
    store, summary = build(
        write_tsv(tmp_path / "t.tsv", cbioportal(linear_frame())), tmp_path / "o"
    )
    plain = to_dict(summary)
    assert json.loads(json.dumps(plain)) == plain == store.facts["counts"]
    assert plain["digest"] == store.digest


def test_settings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ConfigError, match="Give one"):
        ExpressionConfig(gene_vectors="a", gene_list="b")
    with pytest.raises(ConfigError, match="min_vocabulary_share"):
        ExpressionConfig(min_vocabulary_share=1.5)
