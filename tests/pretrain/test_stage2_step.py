"""A step is the same in one pass or many, on one rank or many, padded or not; its limits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstar.data.shards.decode import PatchBatch
from mstar.errors import CheckpointError, ConfigError, TrainingError
from mstar.losses.self_taught import SelfTaughtLossConfig, TargetStatistics
from mstar.models.ema import EMA_FILE, Ema, EmaConfig, momentum_at
from mstar.models.student import Student, StudentConfig
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.stage2_step import Stage2Steps, StepBatch, build_optimizer, stage2_step
from mstar.training.engines import EngineConfig, PlainEngine, make_engine, rank
from mstar.training.optimizers import OptimizerConfig, warmup_cosine
from support.micro_student import TARGET, micro_student
from support.ranks import run_ranks
from support.stage2_rows import rows_for_student, some_rows

ROWS, STEPS, MOMENTUM = 12, 4, 0.9
CONFIG = Stage2Config(
    shards="T",
    weights="W",
    out="E",
    batch_patches=64,
    lr=1e-3,
    lr_projection=1e-2,
    layer_decay=0.8,
    optimizer=OptimizerConfig(grad_clip=0.05),
    engine=EngineConfig(engine="plain", precision="fp32"),
)
LINEAR_L2 = SelfTaughtLossConfig(a="l2", b="l2")


def run_steps(
    shares: list[list[int]],
    *,
    micro_batch: int = 64,
    padding: int = 0,
    loss: SelfTaughtLossConfig | None = None,
    momentum: float = MOMENTUM,
    engine: str = "plain",
    steps: int = STEPS,
) -> tuple[dict[str, Any], Student, Ema]:
    """Some steps of this rank over its share of the same rows; states and metrics after them."""
    student = micro_student()
    ema = Ema(student)
    made = make_engine(
        student,
        build_optimizer(student, CONFIG),
        EngineConfig(engine=engine, precision="fp32"),  # type: ignore[arg-type]
        grad_clip=CONFIG.optimizer.grad_clip,
    )
    mine = shares[rank()]
    metrics = [
        stage2_step(
            made,
            ema,
            some_rows(rows_for_student(ROWS, seed=step), mine, padding=padding),
            loss=loss or CONFIG.loss,
            statistics=None,
            micro_batch=micro_batch,
            momentum=momentum,
            precision="fp32",
            step=step,
        )
        for step in range(steps)
    ]
    states = {"student": student.state_dict(), "ema": ema.module.state_dict(), "metrics": metrics}
    return copy.deepcopy(states), student, ema


def assert_same(found: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-4) -> None:
    for one, other in zip(found["metrics"], expected["metrics"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    for name in ("student", "ema"):
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=2e-6)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return run_steps([list(range(ROWS))])[0]


@pytest.mark.parametrize("micro_batch", [1, 5, 6, ROWS])
def test_gradient_accumulation_changes_nothing(micro_batch: int, whole: dict[str, Any]) -> None:
    assert_same(run_steps([list(range(ROWS))], micro_batch=micro_batch)[0], whole)


@pytest.mark.parametrize("micro_batch", [5, ROWS, 64])
def test_padding_changes_nothing(micro_batch: int, whole: dict[str, Any]) -> None:
    """Also passes of nothing but padding, with NaN as targets."""
    found = run_steps([list(range(ROWS))], padding=11, micro_batch=micro_batch)[0]
    assert_same(found, whole)
    assert found["metrics"][0]["rows"] == ROWS


def test_it_is_the_gradient_of_the_formula() -> None:
    """Against one plain backward pass and AdamW's own step."""
    batch = rows_for_student(ROWS)
    student, reference = micro_student(), micro_student()
    anchor = reference.eval()(reference.prepare(batch.images)).features.detach() + 0.3
    ema = Ema(student)
    ema._forward = lambda images: anchor  # the same for both
    engine = PlainEngine(student, build_optimizer(student, CONFIG), grad_clip=0.0)
    found = stage2_step(
        engine,
        ema,
        batch,
        loss=LINEAR_L2,
        statistics=None,
        micro_batch=64,
        momentum=0.5,
        precision="fp32",
    )
    optimizer = build_optimizer(reference, CONFIG)
    output = reference.train()(reference.prepare(batch.images))
    a = (output.projected - batch.targets.float()).square().mean()
    b = (output.features - anchor).square().mean()
    (a + 0.6 * b).backward()
    optimizer.step()
    torch.testing.assert_close(student.state_dict(), reference.state_dict(), rtol=1e-5, atol=1e-7)
    assert found["loss.a"] == pytest.approx(float(a.detach()), rel=1e-5)
    assert found["loss.b"] == pytest.approx(float(b.detach()), rel=1e-5)
    assert found["loss"] == pytest.approx(float((a + 0.6 * b).detach()), rel=1e-5)
    norm = torch.stack([p.grad.norm() for p in reference.parameters() if p.grad is not None]).norm()
    assert found["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("micro_batch", [2, 64])
def test_the_anchor_follows_once_a_step(micro_batch: int) -> None:
    states, _, _ = run_steps([list(range(ROWS))], micro_batch=micro_batch, steps=1)
    start = micro_student().encoder.state_dict()
    for name, first in start.items():
        now = states["student"][f"encoder.{name}"]
        expected = MOMENTUM * first + (1 - MOMENTUM) * now
        torch.testing.assert_close(states["ema"][name], expected, rtol=1e-5, atol=1e-7)


def test_the_anchor_is_fixed_at_momentum_one() -> None:
    states, student, ema = run_steps([list(range(ROWS))], momentum=1.0)
    torch.testing.assert_close(states["ema"], micro_student().encoder.state_dict(), rtol=0, atol=0)
    assert ema.distance(student.encoder) > 0


@pytest.mark.parametrize("mixing", ["a_plus_lambda_b", "one_minus_lambda"])
def test_at_lambda_zero_the_anchor_has_no_say(mixing: Any) -> None:
    loss = SelfTaughtLossConfig(balance=0.0, mixing=mixing)
    free, _, _ = run_steps([list(range(ROWS))], loss=loss, momentum=0.0)
    fixed, _, _ = run_steps([list(range(ROWS))], loss=loss, momentum=1.0)
    torch.testing.assert_close(free["student"], fixed["student"], rtol=0, atol=0)
    for metrics in fixed["metrics"]:
        assert metrics["loss"] == pytest.approx(metrics["loss.a"])
    held, _, _ = run_steps([list(range(ROWS))], loss=replace(loss, balance=0.5), momentum=1.0)
    assert not torch.equal(
        held["student"]["encoder.norm.weight"], free["student"]["encoder.norm.weight"]
    )


def test_with_loss_b_alone_the_student_stays_at_its_anchor() -> None:
    """Every parameter still takes part in the pass, the projection with a gradient of zero."""
    loss = SelfTaughtLossConfig(balance=1.0, mixing="one_minus_lambda")
    _, student, _ = run_steps([list(range(ROWS))], loss=loss, steps=2)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.parameters())
    bias = student.proj.bias.detach()
    assert not bias.any(), "without a gradient, and without weight decay, it stays where it began"


# Rows of each rank: equally many, rank 1's last ones are padding.
SHARES = [[0, 2, 4, 6, 8, 10, 1], [3, 5, 7, 9, 11]]
PADDING = [0, 2]


def steps_of_rank(engine: str) -> dict[str, Any]:
    return run_steps(SHARES, padding=PADDING[rank()], micro_batch=4, engine=engine)[0]


def anchor_of_rank(folder: Path) -> dict[str, Any]:
    """Ranks that begin apart, and apart again at the checkpoint, which lies on rank 0 alone."""
    ema = Ema(micro_student(seed=rank()))
    found: dict[str, Any] = {"start": copy.deepcopy(ema.module.state_dict())}
    if rank() == 0:
        ema.update(micro_student(seed=5).encoder, 0.5)
    mine = folder / str(rank())
    mine.mkdir()
    ema.save(mine)
    found |= {"saved": ema.module.state_dict(), "files": len([*mine.iterdir()])}
    again = Ema(micro_student(seed=9))
    again.load(mine if rank() == 0 else None)
    found["loaded"] = copy.deepcopy(again.module.state_dict())
    with pytest.raises(CheckpointError, match=EMA_FILE):
        again.load(folder / "nowhere")
    return found


def rank_of_two(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return steps_of_rank("plain"), anchor_of_rank(folder)


def test_two_ranks_take_the_step_of_one_and_share_the_anchor_of_rank_0(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    (steps_0, first), (steps_1, second) = run_ranks(rank_of_two, 2, tmp_path, timeout_s=180)
    for steps in (steps_0, steps_1):
        assert_same(steps, whole)
    torch.testing.assert_close(first["start"], second["start"], rtol=0, atol=0)
    assert (first["files"], second["files"]) == (1, 0)
    for found in (first, second):
        torch.testing.assert_close(found["loaded"], first["saved"], rtol=0, atol=0)


@pytest.mark.slow
def test_two_ranks_under_zero_2_take_the_step_of_one(whole: dict[str, Any]) -> None:
    first, second = run_ranks(steps_of_rank, 2, "deepspeed", timeout_s=300)
    for found in (first, second):
        assert_same(found, whole)
    for name in ("student", "ema"):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def test_a_broken_gradient_ends_the_run_before_the_anchor_follows() -> None:
    student = micro_student()
    ema = Ema(student)
    before = copy.deepcopy(ema.module.state_dict())
    engine = PlainEngine(student, build_optimizer(student, CONFIG), grad_clip=1.0)
    batch = rows_for_student(4)
    batch.targets[2] = torch.inf
    with pytest.raises(TrainingError, match=r"step 7: expected a finite loss.*grad-clip"):
        stage2_step(
            engine,
            ema,
            batch,
            loss=LINEAR_L2,
            statistics=None,
            micro_batch=4,
            momentum=0.5,
            precision="fp32",
            step=7,
        )
    torch.testing.assert_close(ema.module.state_dict(), before, rtol=0, atol=0)


def steps_object(config: Stage2Config, *, num_steps: int, **student: Any) -> Stage2Steps:
    made = micro_student(**student)
    ema = Ema(made)
    statistics = TargetStatistics(mean=torch.zeros(TARGET), std=torch.ones(TARGET))
    engine = make_engine(
        made, build_optimizer(made, config), config.engine, grad_clip=config.optimizer.grad_clip
    )
    return Stage2Steps(
        engine=engine, ema=ema, config=config, num_steps=num_steps, statistics=statistics
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", ["cosine", "smooth_l1"])
def test_a_run_learns_its_targets(precision: Any, form: Any) -> None:
    config = replace(
        CONFIG,
        engine=EngineConfig(engine="plain", precision=precision),
        loss=SelfTaughtLossConfig(a=form, standardise=form != "cosine"),
        optimizer=OptimizerConfig(),
    )
    steps, batch = steps_object(config, num_steps=25), rows_for_student(8)
    found = [steps.take(step, batch) for step in range(25)]
    assert found[-1]["loss.a"] < 0.6 * found[0]["loss.a"]
    assert found[-1]["cosine.a"] > found[0]["cosine.a"] + 0.3
    assert found[0]["cosine.b"] == pytest.approx(1, abs=1e-3), "the anchor starts as the student"
    factor = warmup_cosine(25, config.optimizer)
    assert [one["lr"] for one in found] == pytest.approx([1e-3 * factor(s) for s in range(25)])
    assert [one["ema.momentum"] for one in found] == [
        momentum_at(step, 25, EmaConfig()) for step in range(25)
    ]


def test_drop_path_draws_are_those_of_the_step_whatever_came_before() -> None:
    """So that a resumed run skips the same blocks."""
    results = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        steps = steps_object(CONFIG, num_steps=9, drop_path=0.5)
        results.append(steps.take(4, rows_for_student(8))["loss.a"])
    other = steps_object(CONFIG, num_steps=9, drop_path=0.5).take(5, rows_for_student(8))
    assert results[0] == results[1] != other["loss.a"]


def test_a_decoded_batch_is_taken_where_it_lies() -> None:
    batch = PatchBatch(
        pixels=np.zeros((3, 32, 32, 3), np.uint8),
        targets=np.ones((3, TARGET), np.float16),
        weights=np.array([1, 1, 0], np.float32),
        rows=np.array([4, 5, -1]),
        num_bad=0,
        taken=(),
    )
    found = StepBatch.of(batch)
    assert found.images.data_ptr() == batch.pixels.ctypes.data
    assert len(found) == 3
    assert [len(one) for one in found.passes(2)] == [2, 1]


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_patches": 100},
        {"micro_batch": 0},
        {"layer_decay": 0.0},
        {"max_bad_rows": "many"},
        {"checkpoint_every_steps": -1},
        {"branch": "teacher"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(CONFIG, **fields)


def test_the_fingerprint_names_what_is_computed_and_not_how() -> None:
    def changed(**fields: Any) -> bool:
        return replace(CONFIG, **fields).fingerprint != CONFIG.fingerprint

    assert not changed(out="other", micro_batch=1, shards="s3://b/T", watch_every_steps=1)
    assert not changed(student=StudentConfig(compile=True, activation_checkpointing=True))
    assert changed(student=StudentConfig(drop_path=0.1))
    assert changed(lanes=32)
    assert changed(loss=SelfTaughtLossConfig(balance=0.5))
    assert changed(ema=EmaConfig(momentum=0.9))
    assert changed(epochs=2)
