"""Encoders of one's own: `--encoder module:function`, from the name to the features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mstar.errors import ConfigError
from mstar.models import patch_encoders
from mstar.models.encoder_table import find_encoder
from mstar.models.patch_encoders import load_encoder, prepare_weights

MODULE = '''
import timm_like
from mstar.models.encoder_spec import EncoderSpec
from mstar.models.torchvision_ops import import_timm


def build():
    return import_timm().create_model(
        "vit_tiny_patch16_224", num_classes=0, global_pool="", reg_tokens=4
    )


def cls_and_mean(model, images):
    """[batch, 1 + 4 + patch, 192] -> [batch, 384], registers left out."""
    import torch

    tokens = model(images)
    return torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=-1)


def virchow_like():
    return EncoderSpec(
        name="ignored", dim=384, build=build, forward=cls_and_mean, licence="MIT",
        interpolation="bicubic", default_weights="random:3",
    )


def wrong_dim():
    return EncoderSpec(name="ignored", dim=383, build=build, forward=cls_and_mean,
                       licence="MIT", default_weights="random:3")


def not_a_spec():
    return "hello"


def wants_arguments(path):
    return virchow_like()


not_callable = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's, on the path for this test."""
    name = f"users_encoder_{tmp_path.name.replace('-', '_')}"
    file = tmp_path / f"{name}.py"
    file.write_text(MODULE.replace("import timm_like\n", ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    return file


def test_own_forward_runs_with_our_transform_weights_and_provenance(module: Path) -> None:
    name = f"{module.stem}:virchow_like"
    resolved = prepare_weights(name)
    encoder = load_encoder(name, weights=resolved, batch_size=2, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    features = encoder.encode(pixels)
    model = encoder._model
    assert isinstance(model, nn.Module)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.spec.mean, encoder.spec.std))
    with torch.no_grad():
        tokens = model((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], -1)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-3, atol=1e-4)
    assert encoder.describe()["encoder"] == name
    assert encoder.licence == "MIT"


def test_edited_code_is_another_encoder(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    name = f"{module.stem}:virchow_like"
    before = find_encoder(name)
    module.write_text(module.read_text() + "\n# another line\n")
    importlib.invalidate_caches()
    after = find_encoder(name)
    assert before.code_sha256 != after.code_sha256
    assert len(after.code_sha256) == 64


def test_a_dim_that_the_model_does_not_give_is_refused_before_any_slide(module: Path) -> None:
    with pytest.raises(ConfigError, match=r"383.*384"):
        prepare_weights(f"{module.stem}:wrong_dim")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("missing", "has no missing"),
        ("not_callable", "has no not_callable"),
        ("not_a_spec", "returned str"),
        ("wants_arguments", "wants arguments"),
    ],
)
def test_what_is_not_the_contract_is_refused(module: Path, function: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_encoder(f"{module.stem}:{function}")


def test_a_module_that_is_not_there_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"cannot import no_such_module.*PYTHONPATH"):
        find_encoder("no_such_module:encoder")


def test_the_documented_example_gives_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "platform" / "docs" / "encoders.md").read_text()
    example = next(b for b in text.split("```python\n")[1:] if b.startswith('"""my_encoders.py'))
    (tmp_path / "my_documented_encoders.py").write_text(example.split("```")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = find_encoder("my_documented_encoders:virchow2")
    skeleton = patch_encoders.skeleton(spec)
    assert sum(p.numel() for p in skeleton.parameters()) == 631_239_424  # "631 M", its model card
    patch_encoders._check_dim(spec, skeleton)
