"""DeepSpeed's stages against torch by hand; stop and go on, also on another number of ranks."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from mstar.errors import CheckpointError
from mstar.training.engines import EngineConfig
from support import engine_steps
from support.engine_steps import STEPS, Trained, assert_close, assert_equal
from support.ranks import run_ranks

HALF = 3


def zero(stage: int) -> EngineConfig:
    return EngineConfig(engine="deepspeed", zero_stage=stage, precision="fp32")  # type: ignore[arg-type]


def whole_runs(folder: Path, stages: tuple[int, ...]) -> dict[int, Trained]:
    """Every stage to its end, with a checkpoint half way that is gone on with."""
    ended = {}
    for stage in stages:
        engine = engine_steps.start(zero(stage))
        first = engine_steps.advance(engine, 0, HALF)
        engine_steps.save_merged(engine, folder / f"zero{stage}")
        rest = engine_steps.advance(engine, HALF, STEPS)
        assert_equal(go_on(folder / f"zero{stage}", stage), rest)
        ended[stage] = Trained(parameters=rest.parameters, norms=first.norms + rest.norms)
    return ended


def go_on(folder: Path, stage: int) -> Trained:
    return engine_steps.advance(engine_steps.start(zero(stage), resume=folder), HALF, STEPS)


def go_on_all(cases: list[tuple[Path, int]]) -> list[Trained]:
    return [go_on(folder, stage) for folder, stage in cases]


def go_on_alone(folder: Path) -> tuple[Trained, Trained, list[str], list[str]]:
    """On one rank, without a process group of the caller's; then what must be refused."""
    dist.destroy_process_group()
    before = sorted(path.name for path in folder.joinpath("zero2").rglob("*"))
    found = go_on(folder / "zero2", 2)
    assert sorted(path.name for path in folder.joinpath("zero2").rglob("*")) == before
    unbound = engine_steps.advance(engine_steps.start(zero(0), grad_clip=0.0), 0, STEPS)
    said = []
    for damage in ("another stage", "files lost", "files lost, other ranks"):
        try:
            engine_steps.start(zero(0 if "stage" in damage else 2), resume=damaged(folder, damage))
        except CheckpointError as error:
            said.append(str(error))
    return found, unbound, said, before


def damaged(folder: Path, damage: str) -> Path:
    if damage == "another stage":
        return folder / "zero2"
    other = folder / damage
    other.mkdir()
    ranks = 2 if "ranks" in damage else 1
    facts = {"engine": "deepspeed", "zero_stage": 2, "world_size": ranks}
    (other / "engine.json").write_text(json.dumps(facts))
    return other


def test_every_stage_trains_as_torch_does_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """Two ranks with different unused parameters, several backward passes a step, clipping."""
    wanted = engine_steps.by_hand()
    results = run_ranks(whole_runs, 2, tmp_path, (0, 1, 2), timeout_s=250)
    for ended in results:
        for found in ended.values():
            assert_close(found, wanted)
    found, unbound, said, _ = run_ranks(go_on_alone, 1, tmp_path, timeout_s=250)[0]
    assert_close(found, Trained(parameters=wanted.parameters, norms=wanted.norms[HALF:]))
    assert_close(unbound, engine_steps.by_hand(grad_clip=0.0))
    assert len(said) == 3
    assert "Go on with --zero-stage 2" in said[0]
    assert all("Delete this checkpoint" in text for text in said[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "now", "pairs"),
    [(1, 2, [(0, 0), (1, 1), (2, 2), (1, 2)]), (2, 1, [(0, 0), (1, 1), (2, 1)])],
)
def test_every_stage_goes_on_at_another_number_of_ranks(
    tmp_path: Path, before: int, now: int, pairs: list[tuple[int, int]]
) -> None:
    """`pairs`: the stage that wrote and the one that goes on."""
    wanted = engine_steps.by_hand()
    for ended in run_ranks(whole_runs, before, tmp_path, (0, 1, 2), timeout_s=250):
        for found in ended.values():
            assert_close(found, wanted)
    cases = [(tmp_path / f"zero{wrote}", reads) for wrote, reads in pairs]
    rest = Trained(parameters=wanted.parameters, norms=wanted.norms[HALF:])
    for results in run_ranks(go_on_all, now, cases, timeout_s=500):
        for found in results:
            assert_close(found, rest)
