"""The anchor follows by its formula, in float32, without messages; its limits; its checkpoint."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import CheckpointError, ConfigError
from mstar.models.ema import EMA_FILE, Ema, EmaConfig, momentum_at
from mstar.models.student import Student, set_activation_checkpointing
from support.micro_student import SIDE, micro_student


def values(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def noise(count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=draw)


def shake(student: Student, seed: int, size: float = 1e-2) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in student.encoder.parameters():
            p += size * torch.randn(p.shape, generator=draw)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.996, 0.9999])
def test_it_is_the_average_of_what_the_student_was(momentum: float) -> None:
    student = micro_student()
    ema = Ema(student)
    expected = [p.double() for p in values(student.encoder)]
    for step in range(5):
        shake(student, step)
        ema.update(student.encoder, momentum)
        now = values(student.encoder)
        expected = [
            momentum * e + (1 - momentum) * p.double() for e, p in zip(expected, now, strict=True)
        ]
    torch.testing.assert_close(
        values(ema.module), [e.float() for e in expected], rtol=1e-6, atol=1e-8
    )


def test_at_momentum_one_it_is_a_fixed_anchor() -> None:
    student = micro_student()
    ema, before = Ema(student), values(student.encoder)
    for step in range(3):
        shake(student, step)
        ema.update(student.encoder, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(values(ema.module), before, strict=True))
    ema.update(student.encoder, 0.0)
    assert all(
        torch.equal(a, b) for a, b in zip(values(ema.module), values(student.encoder), strict=True)
    )


def test_at_momentum_0_9999_it_moves_under_bf16_autocast_where_a_bf16_copy_stands_still() -> None:
    student = micro_student()
    ema = Ema(student)
    start = values(ema.module)
    coarse = [p.bfloat16() for p in start]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    patches = noise(4)
    for _ in range(5):
        images = student.prepare(patches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = student(images).projected.square().mean() + ema(images).float().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(student.encoder, 0.9999)
        torch._foreach_lerp_(coarse, [p.bfloat16() for p in values(student.encoder)], 1e-4)
    pairs = list(zip(start, values(ema.module), values(student.encoder), strict=True))
    assert all(now.dtype == torch.float32 for _, now, _ in pairs)
    trained = [(a, b, s) for a, b, s in pairs if not torch.equal(a, s)]
    assert len(trained) == len(pairs)
    assert all(bool((now != before).any()) for before, now, _ in trained)
    # towards the student, by about 1e-4 of the way for every step since it left
    way = sum(float((now - before).double().norm() ** 2) for before, now, _ in trained) ** 0.5
    gap = sum(float((s - before).double().norm() ** 2) for before, _, s in trained) ** 0.5
    assert 0.5 * 3e-4 < way / gap < 2 * 3e-4
    matrices = [place for place, before in enumerate(start) if before.squeeze().ndim > 1]

    def share_moved(now: list[torch.Tensor]) -> float:
        moved = [now[i] != start[i].to(now[i].dtype) for i in matrices]
        return float(torch.cat([one.flatten() for one in moved]).float().mean())

    assert share_moved(coarse) < 0.02 < 0.9 < share_moved(values(ema.module))


def test_it_evaluates_without_gradient_dropout_or_skipped_blocks() -> None:
    student = micro_student(drop_path=0.5, proj_drop_rate=0.5)
    set_activation_checkpointing(student.encoder, True)
    ema = Ema(student)
    images = student.prepare(noise(8))
    student.train()
    first, second = ema(images), ema(images)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(p.requires_grad for p in ema.module.parameters())
    torch.testing.assert_close(first, student.eval()(images).features.detach())
    assert student.encoder.grad_checkpointing, "the student's own switch is left alone"
    shared = {p.data_ptr() for p in student.parameters()}
    assert not shared & {p.data_ptr() for p in ema.module.parameters()}


def test_an_update_is_one_fused_pass_without_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    student = micro_student()
    ema = Ema(student)
    calls = []
    fused = torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *a: (calls.append(a), fused(*a))[1])
    for name in ("broadcast", "all_reduce", "all_gather", "all_gather_into_tensor", "reduce"):
        monkeypatch.setattr(dist, name, lambda *_, **__: pytest.fail("it sent a message"))
    ema.update(student.encoder, 0.99)
    ((mine, theirs, share),) = calls
    assert len(mine) == len(theirs) == len(list(student.encoder.parameters()))
    assert share == pytest.approx(0.01)


def test_distance_is_relative_to_its_norm() -> None:
    student = micro_student()
    ema = Ema(student)
    assert ema.distance(student.encoder) == 0
    shake(student, 1)
    mine = torch.cat([p.flatten() for p in values(ema.module)]).double()
    theirs = torch.cat([p.flatten() for p in values(student.encoder)]).double()
    expected = float((theirs - mine).norm() / mine.norm())
    assert ema.distance(student.encoder) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(momentum=st.floats(0, 1), steps=st.integers(2, 500))
def test_the_schedule_rises_from_its_momentum_to_one(momentum: float, steps: int) -> None:
    config = EmaConfig(momentum=momentum)
    found = [momentum_at(step, steps, config) for step in range(steps)]
    assert found[0] == pytest.approx(momentum)
    assert found[-1] == 1
    assert all(a <= b + 1e-12 for a, b in pairwise(found))
    assert momentum_at(steps // 2, steps, EmaConfig(momentum=momentum, schedule="constant")) == (
        momentum
    )


@pytest.mark.parametrize("fields", [{"momentum": 1.1}, {"momentum": -0.1}])
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--ema\."):
        EmaConfig(**fields)


def test_a_checkpoint_gives_back_the_same_average(tmp_path: Path) -> None:
    """Over several ranks: `test_stage2_step`."""
    student = micro_student()
    ema = Ema(student)
    shake(student, 3)
    ema.update(student.encoder, 0.5)
    ema.save(tmp_path)
    again = Ema(micro_student(seed=9))
    again.load(tmp_path)
    torch.testing.assert_close(again.module.state_dict(), ema.module.state_dict(), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=EMA_FILE):
        again.load(tmp_path / "nowhere")


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    ema = Ema(micro_student())
    torch.save({"blocks.0.norm1.weight": torch.ones(5)}, tmp_path / EMA_FILE)
    with pytest.raises(CheckpointError, match="expected the EMA copy of this encoder"):
        ema.load(tmp_path)
