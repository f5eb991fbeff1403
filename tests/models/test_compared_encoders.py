"""Encoders of others: transform, pooling, and published files held against transformers itself."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mstar.errors import WeightsError
from mstar.models.compared_encoders import COMPARED, cls_and_mean
from mstar.models.conch_tower import ConchTower
from mstar.models.encoder_spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec
from mstar.models.encoder_table import ENCODERS
from mstar.models.patch_encoders import load_encoder, prepare_weights
from mstar.models.published_names import conch_image_tower, from_transformers
from mstar.models.state_dicts import draw_model, match_state, read_state
from mstar.models.timm_models import timm_model
from mstar.models.torchvision_ops import import_timm
from mstar.models.transforms import resize_patch

# What the public loading recipes say: vector, input, kernel, mean, licence's first word, gate.
STATED = {
    "uni2": (1536, 224, "bilinear", 0.485, "CC-BY-NC-ND-4.0", True),
    "virchow2": (2560, 224, "bicubic", 0.485, "CC-BY-NC-ND-4.0", True),
    "gigapath": (1536, 224, "bicubic", 0.485, "Apache-2.0", True),
    "h_optimus_0": (1536, 224, "bicubic", 0.707223, "Apache-2.0", True),
    "h_optimus_1": (1536, 224, "bicubic", 0.707223, "CC-BY-NC-ND-4.0", True),
    "phikon": (768, 224, "bilinear", 0.485, "Owkin", False),
    "phikon_v2": (1024, 224, "bicubic", 0.485, "Owkin", False),
    "midnight": (3072, 224, "bilinear", 0.5, "MIT", False),
    "plip": (512, 224, "bicubic", 0.48145466, "none", False),
    "conch": (512, 448, "bicubic", 0.48145466, "CC-BY-NC-ND-4.0", True),
}


def test_the_table_says_what_the_recipes_say() -> None:
    for name, stated in STATED.items():
        spec = ENCODERS[name]
        licence = spec.licence.split()[0]
        found = (spec.dim, spec.input_px, spec.interpolation, spec.mean[0], licence, spec.gated)
        assert found == stated, name
        assert spec.mpp == 0.5
        assert spec.pooling != EncoderSpec.__dataclass_fields__["pooling"].default, name
        assert spec.licence_url == f"https://huggingface.co/{spec.hub_id}"
    assert set(STATED) == set(COMPARED)
    assert (ENCODERS["gigapath"].mean, ENCODERS["gigapath"].std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_patches_of_the_stated_side_reach_the_model_untouched() -> None:
    rng = np.random.default_rng(0)
    for name, stated in STATED.items():
        spec = ENCODERS[name]
        patch = rng.integers(0, 256, (spec.patch_px, spec.patch_px, 3), dtype=np.uint8)
        prepared = resize_patch(patch, spec.input_px, spec.interpolation)
        assert prepared.shape == (stated[1], stated[1], 3), name
        assert np.array_equal(prepared, patch) == (spec.patch_px == spec.input_px)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STATED))
def test_they_encode_with_random_weights(name: str) -> None:
    check_random(name)


def check_random(name: str) -> None:
    """One patch of each side through transform and model; the vector has the stated length."""
    encoder = load_encoder(name, weights="random:0", device="cpu", batch_size=1)
    side = encoder.spec.patch_px
    patch = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    prepared = encoder.prepare(patch)
    assert prepared.shape == (encoder.spec.input_px, encoder.spec.input_px, 3)
    if side == encoder.spec.input_px:
        np.testing.assert_array_equal(prepared, patch)
    features = encoder.encode(prepared[None])
    assert features.shape == (1, STATED[name][0])
    assert np.isfinite(features).all()
    other = encoder.encode(np.roll(prepared, 50, axis=0)[None])
    assert not np.allclose(features, other), "the vector depends on the image"


def saved(model: Any, folder: Path) -> dict[str, Any]:
    """What transformers publishes for a model: its file, under the names of the hub."""
    model.save_pretrained(folder)
    return dict(read_state(folder / "model.safetensors"))


def fitted(model: nn.Module, raw: Any) -> nn.Module:
    """Timm's module with the renamed tensors, strictly."""
    matched = match_state(model, raw, ignored_keys=(), source="test")
    model.load_state_dict(matched.state)
    return model.eval()


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4}


@pytest.fixture
def transformers() -> Any:
    """The library, which needs torchvision's operators to import."""
    import_timm()
    import transformers as library

    torch.manual_seed(0)
    return library


def test_a_vit_of_transformers_gives_its_own_vectors(transformers: Any, tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        image_size=32, patch_size=8,
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    raw = saved(theirs, tmp_path)
    assert "encoder.layer.0.attention.attention.query.weight" in raw, "as published on the hub"
    norm = partial(nn.LayerNorm, eps=1e-12)
    ours = timm_model("vit_base_patch16_224", patch_size=8, norm_layer=norm, **SMALL)
    ours = fitted(ours, from_transformers(raw, num_patches=16))
    with torch.no_grad():
        expected = theirs(IMAGES).last_hidden_state[:, 0]
        torch.testing.assert_close(ours(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [32, 56])
def test_a_dinov2_of_transformers_gives_its_own_tokens(
    transformers: Any, tmp_path: Path, size: int
) -> None:
    """Also where the file's positions are of another grid than the images'."""
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=4,
        image_size=size, patch_size=8, use_swiglu_ffn=True, layerscale_value=0.7,
    )  # fmt: skip
    theirs = transformers.Dinov2Model(config).eval()
    raw = saved(theirs, tmp_path)
    assert "encoder.layer.0.mlp.weights_in.weight" in raw, "as published on the hub"
    ours = timm_model(
        "vit_giant_patch14_dinov2", patch_size=8, init_values=1.0, global_pool="",
        **(SMALL | {"embed_dim": 48}),
    )  # fmt: skip
    ours = fitted(ours, from_transformers(raw, num_patches=16))
    with torch.no_grad():
        tokens = theirs(IMAGES).last_hidden_state
        expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=-1)
        found = cls_and_mean(ours, IMAGES, prefix_tokens=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_clip_tower_of_transformers_gives_its_own_projection(
    transformers: Any, tmp_path: Path
) -> None:
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = transformers.CLIPConfig(vision_config=vision, projection_dim=16)
    theirs = transformers.CLIPModel(config).eval()
    raw = saved(theirs, tmp_path)
    ours = timm_model("vit_base_patch32_clip_quickgelu_224", patch_size=8, num_classes=16, **SMALL)
    ours = fitted(ours, from_transformers(raw, num_patches=16))
    with torch.no_grad():
        found = theirs.get_image_features(pixel_values=IMAGES)
        expected = found if isinstance(found, torch.Tensor) else found.pooler_output
        torch.testing.assert_close(ours(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_published_file_is_loaded_by_name_and_a_wrong_one_is_refused(
    transformers: Any, tmp_path: Path
) -> None:
    theirs = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    resolved = prepare_weights("phikon", str(tmp_path))
    encoder = load_encoder("phikon", weights=resolved, device="cpu", batch_size=1)
    image = np.full((1, 224, 224, 3), 200, np.uint8)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = ((torch.from_numpy(image).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(encoder.encode(image), expected.numpy(), rtol=1e-3, atol=1e-4)
    with pytest.raises(WeightsError, match="does not fit"):
        prepare_weights("plip", str(tmp_path))


def test_files_with_timms_own_names_pass_unchanged() -> None:
    state = draw_model(partial(timm_model, "vit_base_patch16_224", patch_size=8, **SMALL), 0)
    raw = state.state_dict()
    assert from_transformers(raw, num_patches=16) is raw


def test_conchs_tower_is_taken_out_of_its_file() -> None:
    with torch.device("meta"):
        state = ConchTower().state_dict()
        raw = {f"visual.{name}": value for name, value in state.items()}
        raw |= {name: torch.zeros(1) for name in ("visual.proj_contrast", "text.x", "logit_scale")}
    assert conch_image_tower(raw).keys() == state.keys()
    assert conch_image_tower(state) is state


def test_the_query_pool_of_conch_is_an_attention_over_all_tokens() -> None:
    torch.manual_seed(0)
    pool = ConchTower.__init__.__globals__["QueryPool"]().eval()
    nn.init.normal_(pool.query)
    tokens = torch.randn(2, 5, 768)
    with torch.no_grad():
        keys, query = pool.ln_k(tokens), pool.ln_q(pool.query)
        attn = pool.attn
        bias_q, bias_k, bias_v = attn.in_proj_bias.chunk(3)
        q = (query @ attn.q_proj_weight.T + bias_q).view(1, 8, 64).transpose(0, 1)
        k = (keys @ attn.k_proj_weight.T + bias_k).view(2, 5, 8, 64).transpose(1, 2)
        v = (keys @ attn.v_proj_weight.T + bias_v).view(2, 5, 8, 64).transpose(1, 2)
        mixed = (torch.softmax(q @ k.transpose(-1, -2) / 8, dim=-1) @ v).flatten(1)
        expected = mixed @ attn.out_proj.weight.T + attn.out_proj.bias
        torch.testing.assert_close(pool(tokens), expected, rtol=1e-4, atol=1e-5)


def test_gated_encoders_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mstar.cli import doctor_encoders
    from mstar.cli.doctor_checks import Place

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(doctor_encoders.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(doctor_encoders, "is_cached", lambda hub_id: False)

    def check(name: str) -> Any:
        return doctor_encoders.check_encoder(Place(out=".", cache=".", s3=None, encoder=name))

    gated = check("conch")
    assert gated.status == "fail"
    assert "https://huggingface.co/MahmoodLab/conch" in gated.way_out
    assert "HF_TOKEN" in gated.way_out
    assert "--weights" in gated.way_out
    monkeypatch.setenv("HF_TOKEN", "x")
    assert check("conch").status == "warn"
    assert check("phikon").status == "warn"
    assert check("texture").status == "ok"
    assert check("phikn").status == "fail"
    listed = check("").found
    assert all(name in listed for name, spec in ENCODERS.items() if spec.gated)
    monkeypatch.setattr(doctor_encoders, "is_cached", lambda hub_id: True)
    assert check("conch").status == "ok"
    assert json.dumps(check("conch").found)
