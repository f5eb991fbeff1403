"""`mstar encode` again, ended early, beside a broken slide: only what is missing is computed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mstar.data.cases import read_cases, write_cases
from mstar.downstream import encode_vectors
from mstar.downstream.encode_job import run
from mstar.errors import StoreMismatchError
from mstar.features.store import FeatureStore
from mstar.training.exit_codes import ExitCode
from support.encode_runs import config_of, rows
from support.h5ad import read_h5ad
from support.language_world import DIM, World


@pytest.fixture
def world(small_world: World, tmp_path: Path) -> World:
    return small_world.copied(tmp_path / "w")


def test_run_again_is_only_what_is_missing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FeatureStore.open(f"{world.root}/F")
    last = sorted(store.done_ids())[-1]
    away = world.root / "away.h5"
    shutil.move(store.slide_uri(last), away)
    run(config_of(world))
    before = rows(world, "slide_vectors")
    assert last not in before
    assert "1 slides of the cohort have no features" in capsys.readouterr().out
    shutil.move(away, store.slide_uri(last))
    assert run(config_of(world)) == ExitCode.COMPLETE
    assert f"{len(before) + 1:,} vectors of {DIM} (1 new)" in capsys.readouterr().out
    after = rows(world, "slide_vectors")
    assert all(np.array_equal(after[name], vector) for name, vector in before.items())
    kept = (world.root / "V" / "slide_vectors.parquet").read_bytes()
    run(config_of(world))
    assert "(0 new)" in capsys.readouterr().out
    assert (world.root / "V" / "slide_vectors.parquet").read_bytes() == kept
    with pytest.raises(StoreMismatchError, match="window: expected None, found 5"):
        run(config_of(world, window=5))


def test_a_case_whose_slides_changed_is_encoded_anew(world: World) -> None:
    config = config_of(world, level="case", formats="h5ad,patho-bench")
    run(config)
    before = rows(world, "case_vectors")
    uri = f"{world.root}/C/cases.csv"
    cases = read_cases(uri)
    several = next(case for case in cases if len(case.slides) > 1)
    write_cases(uri, [replace(c, slides=c.slides[:1]) if c == several else c for c in cases])
    assert run(config) == ExitCode.COMPLETE
    after = rows(world, "case_vectors")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {several.case_id}
    pooled = world.root / "V" / "patho_bench" / "by_case_id" / f"{several.case_id}.h5"
    with h5py.File(pooled) as file:
        np.testing.assert_array_equal(file["features"][()], after[several.case_id])
    found = read_h5ad(world.root / "V" / "case_vectors.h5ad")
    np.testing.assert_array_equal(found.x, np.stack([after[n] for n in found.obs.index]))


def test_an_ended_run_goes_on_with_its_pieces(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstar.downstream.encode_job.PIECE", 4)
    plain, calls = encode_vectors.SlideEncoder.__call__, []

    def failing(self: Any, samples: Any) -> Any:
        calls.append(len(samples))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, samples)

    monkeypatch.setattr(encode_vectors.SlideEncoder, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(world))
    assert len(list((world.root / "V" / "parts").rglob("*.parquet"))) == 1
    run(config_of(world))
    total = len(rows(world, "slide_vectors"))
    assert sum(calls) - calls[1] == total, "the first piece is not computed twice"
    assert not (world.root / "V" / "parts").exists()


def test_a_broken_slide_is_named_and_the_rest_goes_on(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FeatureStore.open(f"{world.root}/F")
    first = sorted(store.done_ids())[0]
    Path(store.slide_uri(first)).write_bytes(b"nothing")
    assert run(config_of(world)) == ExitCode.EXCLUSIONS
    assert f"failed {first}" in capsys.readouterr().out
    assert first not in rows(world, "slide_vectors")
    record = json.loads((world.root / "V" / "encode.json").read_text())
    assert list(record["tables"]["slide_vectors"]["failures"]) == [first]
    assert run(config_of(world, max_failures="1")) == ExitCode.COMPLETE
