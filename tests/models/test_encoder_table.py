"""The table of encoders against timm itself, and names that are not in it."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from mstar.errors import ConfigError
from mstar.models.compared_encoders import COMPARED
from mstar.models.encoder_spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec
from mstar.models.encoder_table import ENCODERS, find_encoder
from mstar.models.loaded_encoder import forward_of
from mstar.models.state_dicts import draw_model
from mstar.models.torchvision_ops import import_timm

PARAMETERS = {  # published counts, without classifier
    "mstar": 303_350_784,
    "uni": 303_350_784,
    "resnet50": 23_508_032,
    "resnet50_clam": 8_543_296,
    "vit_tiny": 5_524_416,
    "vit_micro": 472_416,
    "texture": 0,
    "uni2": 681_394_176,
    "virchow2": 631_239_424,
    "gigapath": 1_134_953_984,
    "h_optimus_0": 1_134_774_272,
    "h_optimus_1": 1_134_774_272,
    "phikon": 85_798_656,
    "phikon_v2": 303_350_784,
    "midnight": 1_134_769_664,
    "plip": 87_849_728,
    "conch": 87_567_104,
}


GIANTS = ("uni2", "virchow2", "gigapath", "h_optimus_0", "h_optimus_1", "midnight")
ROWS = [
    pytest.param(name, marks=pytest.mark.slow) if name in GIANTS else name
    for name in sorted(ENCODERS)
]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_gives_its_dim_and_size(name: str) -> None:
    spec = ENCODERS[name]
    with torch.device("meta"):
        model = spec.build().eval()
        features = forward_of(spec, model)(torch.zeros(2, 3, spec.input_px, spec.input_px))
    assert spec.name == name
    assert features.shape == (2, spec.dim)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_row_survives_the_journey_to_a_worker(name: str) -> None:
    spec, arrived = ENCODERS[name], pickle.loads(pickle.dumps(ENCODERS[name]))
    functions = {name: getattr(spec, name) for name in ("build", "forward", "published")}
    assert replace(arrived, **functions) == spec
    if name in COMPARED and name not in ("phikon", "plip"):
        return  # one of a kind each is enough: building a giant costs a second
    with torch.device("meta"):
        assert arrived.build().state_dict().keys() == spec.build().state_dict().keys()


@pytest.mark.parametrize("name", ["mstar", "uni"])
def test_published_pathology_encoders_use_imagenet_statistics_not_one_half(name: str) -> None:
    spec = ENCODERS[name]
    assert (spec.input_px, spec.interpolation) == (224, "bilinear")
    assert spec.mean == IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert spec.std == IMAGENET_STD == (0.229, 0.224, 0.225)
    assert (spec.mpp, spec.patch_px) == (0.5, 256)
    assert "NC-ND" in spec.licence


def test_clams_resnet_is_the_third_block_of_timms() -> None:
    whole = draw_model(ENCODERS["resnet50"].build, 0).eval()
    trunk = {k: v for k, v in whole.state_dict().items() if "layer4" not in k}
    clam = ENCODERS["resnet50_clam"].build().eval()
    clam.load_state_dict(trunk)
    image = torch.randn(1, 3, 64, 64)
    timm = import_timm()
    pyramid = timm.create_model("resnet50", features_only=True, out_indices=(3,)).eval()
    pyramid.load_state_dict(trunk)
    with torch.no_grad():
        expected = pyramid(image)[0].mean(dim=(2, 3))
        torch.testing.assert_close(clam(image), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2.lvd142m", "mobilenetv3_small_100"]
)
def test_any_timm_model_brings_timms_own_transform(model: str) -> None:
    spec = find_encoder(f"timm:{model}")
    timm = import_timm()
    reference = timm.create_model(model, num_classes=0).eval()
    data = timm.data.resolve_model_data_config(reference)
    assert (spec.mean, spec.std) == (data["mean"], data["std"])
    assert spec.interpolation == data["interpolation"]
    assert spec.input_px == data["input_size"][1]
    assert spec.hub_id == reference.pretrained_cfg["hf_hub_id"]
    with torch.no_grad():
        features = reference(torch.zeros(1, 3, spec.input_px, spec.input_px))
    assert features.shape == (1, spec.dim)
    assert pickle.loads(pickle.dumps(spec)).name == spec.name


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("mstr", "mstar"),
        ("resnet50-clam", "resnet50_clam"),
        ("timm:vit_tiny_patch16_225", "timm:vit_tiny_patch16_224"),
        ("timm:resnet50.no_such_tag", "timm:resnet50"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"no encoder '{wrong}'") as refusal:
        find_encoder(wrong)
    assert nearest in str(refusal.value).split("Valid:")[0]


@pytest.mark.parametrize(
    "wrong",
    [{"interpolation": "nearest"}, {"dim": 0}, {"std": (0.2, 0.2, 0.0)}, {"mpp": float("nan")}],
)
def test_a_spec_that_would_give_wrong_features_is_refused(wrong: dict[str, object]) -> None:
    good: dict[str, object] = {
        "name": "x",
        "dim": 8,
        "build": ENCODERS["vit_tiny"].build,
        "licence": "MIT",
    }
    EncoderSpec(**good)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'x'"):
        EncoderSpec(**(good | wrong))  # type: ignore[arg-type]
