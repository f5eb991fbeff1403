"""The store gives rows by case, is small to send, and knows when its files were changed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from mstar.data.rna.align import align, zero_rows
from mstar.data.rna.expression import preprocess_expression
from mstar.data.rna.store import ExpressionStore
from mstar.errors import CohortError
from support.rna_tables import RSEM, build, cbioportal, linear_frame, reference, write_tsv
from support.s3 import make_bucket


@pytest.fixture
def store(tmp_path: Path) -> ExpressionStore:
    source = write_tsv(tmp_path / "t.tsv", cbioportal(linear_frame()))
    return build(source, tmp_path / "store")[0]


def test_rows_come_in_the_order_asked_for(store: ExpressionStore) -> None:
    expected = reference(linear_frame())
    wanted = [store.case_ids[4], store.case_ids[0], store.case_ids[4]]
    np.testing.assert_allclose(store.rows(wanted), expected.loc[wanted], rtol=1e-6)
    np.testing.assert_array_equal(store.row(wanted[0]), store.rows(wanted)[0])
    assert store.rows([]).shape == (0, len(store.genes))
    assert len(store) == 6
    assert wanted[0] in store
    assert "x" not in store


def test_a_row_is_a_copy(store: ExpressionStore) -> None:
    store.row(store.case_ids[0])[:] = 7
    assert (store.row(store.case_ids[0]) != 7).any()


def test_a_case_without_a_row_is_named(store: ExpressionStore) -> None:
    with pytest.raises(CohortError, match=r"case x has no expression \(6 cases have\)"):
        store.row("x")


def test_a_store_is_sent_by_its_address(store: ExpressionStore) -> None:
    data = pickle.dumps(store)
    assert len(data) < 500
    np.testing.assert_array_equal(
        pickle.loads(data).rows(store.case_ids), store.rows(store.case_ids)
    )


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    frame = linear_frame()
    source = write_tsv(tmp_path / "t.tsv", cbioportal(frame))
    first, again = build(source, tmp_path / "a")[0], build(source, tmp_path / "b")[0]
    assert first.digest == again.digest
    frame.iloc[0, 0] += 1
    other = build(write_tsv(tmp_path / "t.tsv", cbioportal(frame)), tmp_path / "c")[0]
    assert other.digest != first.digest
    first.verify()


def test_files_that_are_not_what_they_were_are_refused(store: ExpressionStore) -> None:
    folder = Path(store.folder)
    values = (folder / "values.npy").read_bytes()
    changed = bytearray(values)
    changed[-1] ^= 1
    (folder / "values.npy").write_bytes(changed)
    with pytest.raises(CohortError, match=r"values.npy: expected sha256"):
        ExpressionStore.open(str(folder)).verify()
    (folder / "values.npy").write_bytes(values[:-4])
    with pytest.raises(CohortError, match=r"expected a whole float32 .npy file"):
        ExpressionStore.open(str(folder))
    (folder / "values.npy").write_bytes(b"not numpy at all")
    with pytest.raises(CohortError, match=r"expected a whole float32 .npy file"):
        ExpressionStore.open(str(folder))
    (folder / "values.npy").write_bytes(values)
    (folder / "rows.csv").write_text("case_id\na\n")
    with pytest.raises(CohortError, match=r"expected \(1, 7\) as rows.csv and genes.csv say"):
        ExpressionStore.open(str(folder))
    (folder / "values.npy").unlink()
    with pytest.raises(CohortError, match="the values are missing"):
        ExpressionStore.open(str(folder))
    (folder / "expression.json").unlink()
    with pytest.raises(CohortError, match=r"got no expression.json"):
        ExpressionStore.open(str(folder))


def test_a_new_store_replaces_an_older_one(store: ExpressionStore, tmp_path: Path) -> None:
    frame = linear_frame(3)
    newer, _ = build(write_tsv(tmp_path / "n.tsv", cbioportal(frame)), Path(store.folder))
    assert len(newer) == 3
    newer.verify()


def test_a_store_in_a_bucket_equals_one_on_disk(store: ExpressionStore, s3_server: str) -> None:
    folder = f"{make_bucket('expression')}/C/expression"
    source = str(Path(store.folder).parent / "t.tsv")
    preprocess_expression(source, folder, RSEM)
    remote = ExpressionStore.open(folder)
    assert remote.digest == store.digest
    remote.verify()
    wanted = store.case_ids[::-2]
    np.testing.assert_array_equal(remote.rows(wanted), store.rows(wanted))


def test_rows_are_aligned_to_another_vocabulary() -> None:
    values = np.array([[1, 2, 3], [4, 5, 9]], dtype=np.float32)
    aligned, counts = align(values, ["a", "b", "c"], ["c", "x", "a"])
    assert aligned.tolist() == [[3, 0, 1], [9, 0, 4]]
    assert (counts.num_found, counts.num_filled, counts.num_left_out) == (2, 1, 1)
    aligned, _ = align(values, ["a", "b", "c"], ["c", "x", "a"], fill="mean")
    assert aligned.tolist() == [[3, 2, 1], [9, 6.5, 4]]
    with pytest.raises(CohortError, match="1 are missing, the first x"):
        align(values, ["a", "b", "c"], ["c", "x", "a"], fill="error")
    with pytest.raises(CohortError, match="2 are missing, the first x"):
        align(values, ["a", "b", "c"], ["x", "y"])


def test_rows_of_zeros_are_found() -> None:
    values = np.array([[0, 0], [0, 1], [0, 0]], dtype=np.float32)
    assert zero_rows(values).tolist() == [True, False, True]
