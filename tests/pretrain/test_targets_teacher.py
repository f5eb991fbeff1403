"""The teacher computes what stage 1 computed: same weights, same mode, same padding, no dropout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mstar.data.bags import BagConfig, BagReader
from mstar.errors import ConfigError, WeightsError
from mstar.models.stage1_files import load_aggregator
from mstar.pretrain.targets_teacher import Teacher, settle_teacher
from support.target_inputs import (
    DIM,
    WINDOW,
    TargetInputs,
    features_of,
    write_aggregator,
    write_target_inputs,
)


def inputs(tmp_path: Path, mode: str = "public", bag: int | None = WINDOW) -> TargetInputs:
    return write_target_inputs(tmp_path, {"case": {"s": 9}}, mode=mode, bag_patches=bag)


def teacher_of(made: TargetInputs, **fields: object) -> Teacher:
    return Teacher(settle_teacher(made.config("out", **fields), device="cpu"))


@pytest.mark.parametrize("mode", ["public", "masked"])
@pytest.mark.parametrize("num", [1, 9, WINDOW])
def test_targets_are_the_tokens_of_a_bag_of_stage_1(mode: str, num: int, tmp_path: Path) -> None:
    """Against the bag that stage 1's own reader draws, padded to its size, in one plain call."""
    made = write_target_inputs(tmp_path, {"case": {"s": num}}, mode=mode)
    bag = BagReader(str(made.features), BagConfig(size=WINDOW)).read("case", ("s",))
    aggregator = load_aggregator(str(made.aggregator))
    with torch.no_grad():
        tokens = aggregator(
            torch.from_numpy(bag.features)[None].float(), torch.from_numpy(bag.mask)[None]
        ).patches[0]
    expected = tokens[:num].half().numpy()
    found = teacher_of(made)(features_of("s", num))
    assert found.shape == expected.shape
    # a masked bag is not padded here, so that sums are of other lengths
    np.testing.assert_allclose(
        found.astype(np.float32), expected.astype(np.float32), atol=0 if mode == "public" else 2e-3
    )


def test_padding_counts_in_public_mode_only(tmp_path: Path) -> None:
    """The reason for filling up: the public aggregator gives other numbers without it."""
    for mode, padded_to in (("public", WINDOW), ("masked", 0)):
        made = inputs(tmp_path / mode, mode)
        teacher = teacher_of(made)
        assert teacher.spec.padded_to == padded_to
        plain = load_aggregator(str(made.aggregator))
        with torch.no_grad():
            alone = plain(torch.from_numpy(features_of("s", 9))[None].float()).patches[0].numpy()
        distance = np.abs(teacher(features_of("s", 9)).astype(np.float32) - alone).max()
        assert (distance > 0.05) == (mode == "public")


def test_a_target_depends_on_its_window_alone(tmp_path: Path) -> None:
    """The same bytes again, whatever was computed before; dropout is off, generators untouched."""
    teacher = teacher_of(inputs(tmp_path))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = teacher(features_of("s", 9))
    teacher(features_of("other", 5))
    assert teacher(features_of("s", 9)).tobytes() == first.tobytes()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_each_row_has_its_own_target(tmp_path: Path) -> None:
    """After the last LayerNorm, no two patches of a window share a token."""
    found = teacher_of(inputs(tmp_path))(features_of("s", WINDOW))
    assert len(np.unique(found, axis=0)) == WINDOW


@pytest.mark.parametrize(
    "change", [{"mode": "masked"}, {"attention": "exact"}], ids=["mode", "attention"]
)
def test_another_mode_or_attention_only_when_asked_for(
    change: dict[str, object], tmp_path: Path
) -> None:
    made = inputs(tmp_path)
    with pytest.raises(WeightsError, match="trained otherwise"):
        teacher_of(made, **change)
    changed = teacher_of(made, **change, allow_change=True)
    assert dict(changed.spec.config).items() >= change.items()
    as_trained = teacher_of(made)(features_of("s", 9))
    assert np.abs(changed(features_of("s", 9)) - as_trained).max() > 1e-3


def test_the_window_is_that_of_stage_1(tmp_path: Path) -> None:
    made = inputs(tmp_path)
    assert settle_teacher(made.config("out"), device="cpu").window == WINDOW
    assert settle_teacher(made.config("out", window=WINDOW), device="cpu").window == WINDOW
    with pytest.raises(ConfigError, match=f"expected {WINDOW}"):
        settle_teacher(made.config("out", window=8), device="cpu")
    spec = settle_teacher(made.config("out", window=8, allow_change=True), device="cpu")
    assert (spec.window, spec.padded_to) == (8, 8)


def test_an_export_that_says_nothing_has_the_paper_s_window(tmp_path: Path) -> None:
    spec = settle_teacher(inputs(tmp_path, bag=None).config("out"), device="cpu")
    assert (spec.window, spec.bag_patches, spec.features) == (4096, None, None)


def test_weights_replaced_under_a_run_are_refused(tmp_path: Path) -> None:
    """Stage 1 writes its export anew with every new best."""
    made = inputs(tmp_path)
    spec = settle_teacher(made.config("out"), device="cpu")
    write_aggregator(made.aggregator, "x", seed=1)
    with pytest.raises(WeightsError, match="was replaced since this run began"):
        Teacher(spec)


def test_bfloat16_is_close_and_no_more(tmp_path: Path) -> None:
    made = inputs(tmp_path)
    exact = teacher_of(made)(features_of("s", 9)).astype(np.float32)
    rough = teacher_of(made, precision="bfloat16")(features_of("s", 9)).astype(np.float32)
    assert 0 < np.abs(rough - exact).max() < 0.1


def test_tokens_beyond_float16_come_out_as_infinity(tmp_path: Path) -> None:
    """Which the target files refuse; nothing is clipped in silence."""
    made = inputs(tmp_path)
    teacher = teacher_of(made)
    with torch.no_grad():
        teacher._aggregator.norm.weight.fill_(1e6)
    assert np.isinf(teacher(features_of("s", 9))).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_targets(tmp_path: Path) -> None:
    made = inputs(tmp_path)
    spec = settle_teacher(made.config("out"), device="cpu")
    there, here = Teacher(replace(spec, device="cuda")), Teacher(spec)
    for num in (WINDOW, 5, 9):
        rows = features_of("s", num, DIM)
        np.testing.assert_allclose(there(rows), here(rows), atol=4e-3)
        assert there(rows).tobytes() == there(rows).tobytes()
