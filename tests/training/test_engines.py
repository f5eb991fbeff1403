"""The plain engine against torch by hand, alone and on two ranks; checkpoints of other engines."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mstar.errors import CheckpointError, ConfigError
from mstar.training import engines
from mstar.training.engines import EngineConfig, PlainEngine, make_engine
from support import engine_steps
from support.engine_steps import STEPS, Branches, Trained, assert_close, assert_equal
from support.ranks import run_ranks

PLAIN = EngineConfig(engine="plain", precision="fp32")


def whole_run(folder: Path) -> tuple[Trained, Trained]:
    """To the end at once, and with a stop in between."""
    engine = engine_steps.start(PLAIN)
    first = engine_steps.advance(engine, 0, 3)
    engine_steps.save_merged(engine, folder / "step3")
    rest = engine_steps.advance(engine, 3, STEPS)
    again = engine_steps.advance(engine_steps.start(PLAIN, resume=folder / "step3"), 3, STEPS)
    assert_equal(rest, again)
    return first, rest


def go_on(folder: Path) -> Trained:
    return engine_steps.advance(engine_steps.start(PLAIN, resume=folder / "step3"), 3, STEPS)


def go_on_and_run_unbound(folder: Path) -> tuple[Trained, Trained]:
    unbound = engine_steps.advance(engine_steps.start(PLAIN, grad_clip=0.0), 0, STEPS)
    return go_on(folder), unbound


def test_one_and_two_ranks_train_as_torch_does(tmp_path: Path) -> None:
    """Several backward passes a step; ranks use different parameters, and some nobody uses."""
    wanted = engine_steps.by_hand()
    assert min(wanted.norms) < engine_steps.GRAD_CLIP < max(wanted.norms)  # both ways are met
    rest_wanted = Trained(parameters=wanted.parameters, norms=wanted.norms[3:])
    for world_size in (1, 2):
        results = run_ranks(whole_run, world_size, tmp_path / str(world_size))
        for first, rest in results:
            whole = Trained(parameters=rest.parameters, norms=first.norms + rest.norms)
            assert_close(whole, wanted)
        assert_equal(results[0][1], results[-1][1])  # ranks stay equal
    for rest in run_ranks(go_on, 2, tmp_path / "1"):
        assert_close(rest, rest_wanted)
    ((rest, unbound),) = run_ranks(go_on_and_run_unbound, 1, tmp_path / "2")
    assert_close(rest, rest_wanted)
    assert_close(unbound, engine_steps.by_hand(grad_clip=0.0))  # the norm is told all the same


def test_gradients_are_averaged_in_buckets() -> None:
    assert run_ranks(averaged, 2) == [True, True]


def averaged() -> bool:
    right = True
    for engines._BUCKET_ELEMENTS in (1, 20, 10**6):
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 5), (), (7,), (2, 2, 2))]
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, float(number + 10 * dist.get_rank()))
        engines.average_gradients(parameters)
        for number, parameter in enumerate(parameters):
            assert parameter.grad is not None
            right &= torch.equal(parameter.grad, torch.full_like(parameter, number + 5.0))
    return right


def saved(folder: Path) -> Path:
    folder.mkdir()
    model = Branches()
    PlainEngine(model, engine_steps.optimizer_of(model), grad_clip=0.0).save(folder)
    return folder


def test_another_engines_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="expected a checkpoint of the deepspeed engine"):
        engine_steps.start(EngineConfig(engine="deepspeed"), resume=folder)
    facts = {"engine": "deepspeed", "zero_stage": 2, "world_size": 1}
    (folder / "engine.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="Go on with --engine deepspeed"):
        engine_steps.start(PLAIN, resume=folder)


@pytest.mark.parametrize("damage", ["truncated", "missing", "other model", "no facts"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    folder = saved(tmp_path / "plain")
    file = folder / "plain.pt"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-500])
    elif damage == "missing":
        file.unlink()
    elif damage == "other model":
        torch.save({"module": nn.Linear(2, 2).state_dict(), "optimizer": {}}, file)
    else:
        (folder / "engine.json").write_text("[]")
    with pytest.raises(CheckpointError, match=str(folder)):
        engine_steps.start(PLAIN, resume=folder)


def test_parameters_that_no_group_holds_are_a_mistake() -> None:
    model = Branches()
    optimizer = torch.optim.AdamW(model.head.parameters())
    with pytest.raises(AssertionError, match=r"in no group of the optimiser.*a\.weight"):
        make_engine(model, optimizer, PLAIN, grad_clip=0.0)
    model.head.requires_grad_(False)
    with pytest.raises(AssertionError, match="does not train"):
        make_engine(model.head, optimizer, PLAIN, grad_clip=0.0)


def test_an_unknown_engine_is_refused() -> None:
    model = Branches()
    config = EngineConfig(engine="other")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--engine other"):
        make_engine(model, engine_steps.optimizer_of(model), config, grad_clip=0.0)


def test_autocast_is_for_bf16_only() -> None:
    layer, rows = nn.Linear(4, 4), torch.ones(2, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with engines.autocast(torch.device("cpu"), precision):
            assert layer(rows).dtype == dtype
    assert layer.weight.dtype == torch.float32
