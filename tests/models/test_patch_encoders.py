"""Loaded encoders: the same features as the bare model, whatever the order, process or padding."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mstar.errors import ConfigError, FeatureError, WeightsError
from mstar.models import patch_encoders
from mstar.models.encoder_spec import PatchEncoder
from mstar.models.encoder_table import ENCODERS, find_encoder
from mstar.models.patch_encoders import LoadedEncoder, load_encoder, prepare_weights
from mstar.models.state_dicts import draw_model
from mstar.models.weights import ResolvedWeights

BATCH = 6
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def pixels(count: int = BATCH, side: int = 224, seed: int = 0) -> np.ndarray:
    """Patches that differ in colour and in texture."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 200, (count, 1, 1, 3))
    grain = rng.integers(0, 56, (count, side, side, 3))
    return (colour + grain).astype(np.uint8)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny() -> LoadedEncoder:
    """The small ViT with its random weights."""
    return load_encoder("vit_tiny", device="cpu", batch_size=BATCH)


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small ViT, with the classifier that published files have."""
    state = draw_model(ENCODERS["vit_tiny"].build, 9).state_dict()
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(state | {"head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(3)}, path)
    return path


def test_features_are_those_of_the_bare_model(tiny: LoadedEncoder) -> None:
    protocol: PatchEncoder = tiny  # mypy holds it to the protocol
    batch = pixels()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (tiny.spec.mean, tiny.spec.std))
    model = draw_model(tiny.spec.build, 0).eval()
    with torch.no_grad():
        expected = model((torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    features = protocol.encode(batch)
    assert features.dtype == np.float32
    assert features.shape == (BATCH, protocol.dim)
    centre = expected.mean(0)
    error = np.linalg.norm(features - expected) / np.linalg.norm(expected - centre)
    neighbour = np.linalg.norm(np.roll(expected, 1, 0) - expected) / np.linalg.norm(
        expected - centre
    )
    assert error < 1e-4 < 0.5 < neighbour  # the bound is one that a wrong row cannot meet


@pytest.mark.parametrize("name", ["vit_tiny", "resnet50_clam", "resnet50"])
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.usefixtures("threads")
def test_permuting_rows_permutes_features_bit_for_bit(name: str, num_threads: int) -> None:
    encoder = load_encoder(
        name, weights="random:1", device="cpu", batch_size=BATCH, threads=num_threads
    )
    batch = pixels()
    order = np.random.default_rng(1).permutation(BATCH)
    features = encoder.encode(batch)
    assert len(np.unique(features, axis=0)) == BATCH
    np.testing.assert_array_equal(encoder.encode(batch[order].copy()), features[order])
    alone = np.zeros_like(batch)
    alone[2] = batch[4]  # padding and neighbours do not matter either
    np.testing.assert_array_equal(encoder.encode(alone)[2], features[4])
    assert encoder.runtime()["threads"] == num_threads


def test_features_are_equal_in_every_process(tiny: LoadedEncoder) -> None:
    code = (
        "import numpy as np, torch, hashlib\n"
        "from mstar.models.patch_encoders import load_encoder\n"
        f"e = load_encoder('vit_tiny', device='cpu', batch_size={BATCH}, "
        f"threads={torch.get_num_threads()})\n"
        f"b = np.random.default_rng(7).integers(0, 256, ({BATCH}, 224, 224, 3), dtype=np.uint8)\n"
        "print(hashlib.sha256(e.encode(b).tobytes()).hexdigest())"
    )
    import hashlib

    batch = np.random.default_rng(7).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    here = hashlib.sha256(tiny.encode(batch).tobytes()).hexdigest()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here


def test_results_are_the_callers_own(tiny: LoadedEncoder) -> None:
    """A pending batch depends neither on the pixels' buffer nor on later batches."""
    buffer = pixels(seed=1)
    expected = tiny.encode(buffer.copy()).copy()
    pending = tiny.encode_async(buffer)
    buffer[:] = 0
    later = tiny.encode_async(buffer)
    assert not np.array_equal(later.result(), expected)
    np.testing.assert_array_equal(pending.result(), expected)
    assert pending.result().flags.c_contiguous
    base = pending.result().base
    held_bytes = base.nbytes if isinstance(base, np.ndarray) else pending.result().nbytes
    assert held_bytes == BATCH * tiny.dim * 4  # not a view into every token of the batch


def test_tensors_and_read_only_arrays_are_taken(tiny: LoadedEncoder) -> None:
    batch = pixels()
    expected = tiny.encode(batch)
    frozen = batch.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(tiny.encode(frozen), expected)
    np.testing.assert_array_equal(tiny.encode(torch.from_numpy(batch)), expected)


@pytest.mark.parametrize(
    "wrong", [pixels(BATCH - 1), pixels(side=256), pixels().astype(np.int16), pixels()[0]]
)
def test_anything_but_a_whole_batch_is_refused(tiny: LoadedEncoder, wrong: np.ndarray) -> None:
    # The shape annotations refuse it first when they are checked, with an error of their own.
    with pytest.raises((ConfigError, TypeError)):
        tiny.encode(wrong)


def test_prepare_resizes_the_whole_patch(tiny: LoadedEncoder) -> None:
    assert tiny.prepare(pixels(1, 512)[0]).shape == (224, 224, 3)


def test_weights_from_a_file_change_the_features_and_are_recorded(
    tiny: LoadedEncoder, other_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolved = prepare_weights("vit_tiny", str(other_weights))
    with caplog.at_level("INFO"):
        encoder = load_encoder("vit_tiny", weights=resolved, device="cpu", batch_size=BATCH)
    assert "left out 2 tensors of head." in caplog.text
    batch = pixels()
    expected = draw_model(tiny.spec.build, 9).eval()
    direct = load_encoder("vit_tiny", weights="random:9", device="cpu", batch_size=BATCH)
    assert expected.state_dict().keys() == encoder._model.state_dict().keys()
    np.testing.assert_array_equal(encoder.encode(batch), direct.encode(batch))
    assert not np.array_equal(encoder.encode(batch), tiny.encode(batch))
    assert encoder.describe()["weights_sha256"] == resolved.sha256
    assert encoder.runtime()["weights_uri"] == str(other_weights)


def test_the_description_is_the_same_wherever_the_file_lies(
    other_weights: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "moved.safetensors"
    copy.write_bytes(other_weights.read_bytes())
    first, second = (
        load_encoder("vit_tiny", weights=str(p), device="cpu", batch_size=b).describe()
        for p, b in ((other_weights, 2), (copy, 4))
    )
    assert first == second
    assert set(map(type, first.values())) <= {str, int}


def test_a_wrong_checkpoint_is_refused_before_any_slide(other_weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing: conv1\.weight.*unexpected: blocks\.0\.") as e:
        prepare_weights("resnet50", str(other_weights))
    assert str(other_weights) in str(e.value)
    with pytest.raises(WeightsError, match=r"of another shape: .*expected .*1024"):
        prepare_weights("mstar", str(other_weights))


def test_random_weights_of_another_making_are_refused() -> None:
    other = ResolvedWeights(sha256="0" * 64, uri="random:0", path=None)
    with pytest.raises(WeightsError, match="same timm"):
        load_encoder("vit_tiny", weights=other, device="cpu", batch_size=1)


def test_a_file_changed_since_the_preflight_is_refused(tmp_path: Path, other_weights: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(other_weights.read_bytes())
    resolved = prepare_weights("vit_tiny", str(file))
    file.write_bytes(other_weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(WeightsError, match="changed"):
        load_encoder("vit_tiny", weights=resolved, device="cpu", batch_size=1)


def test_a_hub_config_beside_the_weights_is_not_read(tmp_path: Path, other_weights: Path) -> None:
    """The published mSTAR `config.json` says 0.5 / 0.5; a folder with it changes nothing."""
    (tmp_path / "model.safetensors").write_bytes(other_weights.read_bytes())
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": [0.5], "std": [0.5]}}')
    with_config = load_encoder("vit_tiny", weights=str(tmp_path), device="cpu", batch_size=BATCH)
    without = load_encoder("vit_tiny", weights=str(other_weights), device="cpu", batch_size=BATCH)
    np.testing.assert_array_equal(with_config.encode(pixels()), without.encode(pixels()))
    assert with_config.describe()["transform"] == without.describe()["transform"]


def test_the_preflight_of_a_vit_large_takes_no_memory_for_the_model() -> None:
    spec = find_encoder("mstar")
    skeleton = patch_encoders.skeleton(spec)
    assert all(p.is_meta for p in skeleton.parameters())
    patch_encoders._check_dim(spec, skeleton)


def test_a_model_that_resists_the_meta_device_is_checked_for_real(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stubborn() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 5, 16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        assert float(next(model.parameters()).detach().sum()) < 1e9  # needs a value
        return model

    spec = replace(ENCODERS["vit_tiny"], name="stubborn", dim=5, build=stubborn)
    monkeypatch.setitem(ENCODERS, "stubborn", spec)
    resolved = prepare_weights("stubborn", "random:0")
    encoder = load_encoder("stubborn", weights=resolved, device="cpu", batch_size=2)
    assert encoder.encode(pixels(2)).shape == (2, 5)


def test_features_that_are_not_numbers_are_never_handed_out(
    tmp_path: Path,
) -> None:
    state = draw_model(ENCODERS["vit_tiny"].build, 0).state_dict()
    state["norm.bias"][3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    encoder = load_encoder(
        "vit_tiny", weights=str(tmp_path / "nan.safetensors"), device="cpu", batch_size=2
    )
    with pytest.raises(FeatureError, match=r"2 of 2 patches.*--precision bfloat16"):
        encoder.encode(pixels(2))


def test_bfloat16_is_close_to_float32(tiny: LoadedEncoder) -> None:
    half = load_encoder("vit_tiny", device="cpu", precision="bfloat16", batch_size=BATCH)
    full, low = tiny.encode(pixels()), half.encode(pixels())
    centred = full - full.mean(0)
    error = np.linalg.norm(low - full) / np.linalg.norm(centred)
    assert 0 < error < 0.1
    assert half.describe()["precision"] == "bfloat16" != tiny.describe()["precision"]


@pytest.mark.parametrize(
    "wrong", [{"device": "gpu"}, {"precision": "fp16"}, {"batch_size": 0}, {"name": "nope"}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    settings: dict[str, object] = {"name": "vit_tiny", "device": "cpu", "batch_size": 1}
    with pytest.raises(ConfigError):
        load_encoder(**(settings | wrong))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="--device cpu"):
        load_encoder("vit_tiny", device="cuda", batch_size=1)


@pytest.mark.gpu
@GPU
def test_batches_in_flight_on_a_gpu_do_not_mix() -> None:
    encoder = load_encoder("vit_tiny", device="cuda", precision="float32", batch_size=BATCH)
    batches = [pixels(seed=seed) for seed in range(7)]
    expected = [encoder.encode(batch) for batch in batches]
    buffer = np.empty_like(batches[0])
    pending = []
    for batch in batches:  # one buffer, used again at once; results collected late
        buffer[:] = batch
        pending.append(encoder.encode_async(buffer))
    for handle, wanted in zip(pending, expected, strict=True):
        np.testing.assert_array_equal(handle.result(), wanted)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_a_gpu_gives_the_cpus_features(tiny: LoadedEncoder, precision: str, bound: float) -> None:
    encoder = load_encoder("vit_tiny", device="cuda", precision=precision, batch_size=BATCH)
    expected = tiny.encode(pixels())
    error = np.linalg.norm(encoder.encode(pixels()) - expected)
    assert error / np.linalg.norm(expected - expected.mean(0)) < bound


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_features(tiny: LoadedEncoder) -> None:
    compiled = load_encoder("vit_tiny", device="cpu", compile=True, batch_size=BATCH)
    expected = tiny.encode(pixels())
    error = np.linalg.norm(compiled.encode(pixels()) - expected)
    assert error / np.linalg.norm(expected - expected.mean(0)) < 1e-4
    assert compiled.runtime()["compile"] == 1
