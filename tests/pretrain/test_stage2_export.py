"""Exports: plain timm loads them, `mstar embed` takes them, MLflow's registry knows them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from mstar.errors import WeightsError
from mstar.losses.self_taught import TargetStatistics
from mstar.models.ema import Ema
from mstar.models.encoder_table import ENCODERS, timm_call
from mstar.models.patch_encoders import load_encoder, prepare_weights
from mstar.models.projection import load_projection
from mstar.models.student import Student, build_student
from mstar.pretrain.stage2_export import (
    CARD,
    ENCODER,
    ENCODER_PTH,
    PROJECTION,
    ExportFacts,
    export,
    folded_projection,
    read_record,
    register,
)
from mstar.training.tracking import start_tracking
from support.memory_tracker import MemoryTracker

TARGET = 16
FACTS = ExportFacts(
    encoder="vit_micro",
    initial_uri="random:3",
    initial_sha256="ab" * 32,
    step=1234,
    counts={"patches": 1_000_000, "slides": 37, "cases": 24},
    config={"lr": 1e-05, "loss": {"balance": 0.6}},
    metrics={"loss.a": 0.25, "watch.drift": 0.0125},
    provenance={"shards_fingerprint": "feedbeef", "aggregator_sha256": "cd" * 32},
    generated=True,
)
# Without a line of ours: only timm, and what its import needs beside a torch without CUDA.
PLAIN_TIMM = """
import sys, numpy as np, torch
sys.modules["mstar"] = None
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
from safetensors.torch import load_file
folder, call = sys.argv[1:]
image = torch.from_numpy(np.load(folder + "/image.npy"))
for name, read in (("encoder.pth", torch.load), ("encoder.safetensors", load_file)):
    model = eval(call).eval()
    model.load_state_dict(read(folder + "/" + name), strict=True)
    np.save(folder + "/" + name + ".npy", model(image).detach().numpy())
"""


@pytest.fixture(scope="module")
def student() -> Student:
    """As an engine leaves it: every parameter a view of one larger buffer."""
    made = build_student("vit_micro", prepare_weights("vit_micro", "random:3"), target_dim=TARGET)
    parameters = list(made.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    draw = torch.Generator().manual_seed(1)
    flat += 0.01 * torch.randn(flat.shape, generator=draw)
    flat = torch.cat([flat, torch.zeros_like(flat)])
    parts = flat[: len(flat) // 2].split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.data = part.view_as(p)
    return made.eval()


@pytest.fixture(scope="module")
def folder(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("export")
    export(str(made), student, FACTS)
    return made


def test_plain_timm_loads_it_strictly_and_computes_the_same(student: Student, folder: Path) -> None:
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    np.save(folder / "image.npy", image.numpy())
    call = timm_call(ENCODERS["vit_micro"])
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN_TIMM, str(folder), call], check=True
    )
    with torch.no_grad():
        expected = student(image).features.numpy()
    for name in (ENCODER_PTH, ENCODER):
        np.testing.assert_allclose(np.load(folder / f"{name}.npy"), expected, rtol=1e-5, atol=1e-6)


def test_embed_takes_it_at_once(student: Student, folder: Path) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = student(student.prepare(torch.from_numpy(patches))).features.numpy()
    for name in (ENCODER_PTH, ENCODER):
        encoder = load_encoder("vit_micro", weights=str(folder / name), device="cpu", batch_size=4)
        np.testing.assert_allclose(encoder.encode(patches), expected, rtol=1e-5, atol=1e-5)


def test_files_hold_their_own_tensors_and_no_more(student: Student, folder: Path) -> None:
    size = 4 * sum(p.numel() for p in student.encoder.parameters())
    for name in (ENCODER_PTH, ENCODER):
        assert size < (folder / name).stat().st_size < 1.2 * size
    state = torch.load(folder / ENCODER_PTH, weights_only=True)
    assert type(state) is dict
    torch.testing.assert_close(state, load_file(folder / ENCODER), rtol=0, atol=0)


def test_equal_runs_give_equal_bytes(student: Student, folder: Path, tmp_path: Path) -> None:
    hashes = export(str(tmp_path), student, FACTS)
    for name in (ENCODER_PTH, ENCODER, PROJECTION, CARD):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert hashes[ENCODER] != hashes[ENCODER_PTH]
    assert not [path for path in tmp_path.iterdir() if path.name not in {*hashes, CARD}]


def test_the_average_can_be_exported_instead(student: Student, tmp_path: Path) -> None:
    ema = Ema(student)
    with torch.no_grad():
        for p in ema.module.parameters():
            p.mul_(0.5)
    facts = replace(FACTS, branch="ema")
    export(str(tmp_path), student, facts, encoder=ema.module)
    found = load_file(tmp_path / ENCODER)
    torch.testing.assert_close(found, dict(ema.module.state_dict()))
    assert "moving average" in (tmp_path / CARD).read_text()


def test_the_projection_leads_to_the_targets_as_they_were(
    student: Student, folder: Path, tmp_path: Path
) -> None:
    features = torch.randn(5, 96)
    plain = load_projection(folder / PROJECTION)
    torch.testing.assert_close(plain(features), student.proj(features).detach())
    assert set(load_file(folder / PROJECTION)) == {"proj.weight", "proj.bias"}
    draw = torch.Generator().manual_seed(2)
    mean, std = torch.randn(TARGET, generator=draw), torch.rand(TARGET, generator=draw) + 0.1
    statistics = TargetStatistics(mean=mean, std=std)
    export(str(tmp_path), student, FACTS, statistics=statistics)
    found = load_projection(tmp_path / PROJECTION)(features)
    torch.testing.assert_close(statistics.standardise(found), student.proj(features).detach())
    assert not torch.equal(
        student.proj.bias, folded_projection(student.proj, statistics)["proj.bias"]
    )
    with pytest.raises(WeightsError, match=r"expected proj\.weight and proj\.bias"):
        load_projection(folder / ENCODER)


def test_the_files_say_what_made_them(folder: Path) -> None:
    record = read_record(folder / ENCODER)
    assert (record["kind"], record["step"]) == ("patch_encoder", 1234)
    assert record["initial_sha256"] == FACTS.initial_sha256
    assert record["transform"] == ENCODERS["vit_micro"].transform
    assert read_record(folder / PROJECTION)["kind"] == "projection"


def test_the_card_has_counts_settings_metrics_licence_and_how_to_load(folder: Path) -> None:
    card = (folder / CARD).read_text()
    for text in (
        "472,416 parameters",
        timm_call(ENCODERS["vit_micro"]),
        "strict=True",
        "mstar embed --encoder vit_micro --weights encoder.safetensors",
        "| patches | 1,000,000 |",
        "| cases | 24 |",
        "| loss.a | 0.25 |",
        "aggregator sha256",
        "**Apache-2.0**",
        "Trained on generated data",
        "Not a medical device",
        ENCODERS["vit_micro"].transform,
    ):
        assert text in card, text
    settings = card[card.index("```json") + 7 :].split("```")[0]
    assert json.loads(settings) == FACTS.config


def test_the_licence_of_the_initial_weights_goes_on(tmp_path: Path) -> None:
    from mstar.pretrain.stage2_card import model_card

    record = {
        "encoder": "uni",
        "initial_uri": "hf-hub:MahmoodLab/UNI",
        "initial_sha256": "0",
        "step": 1,
        "branch": "student",
        "counts": {},
        "config": {},
        "metrics": {},
        "provenance": {},
        "generated": False,
        "mstar": "0",
        "dim": 1024,
        "transform": "t",
        "licence": "CC-BY-NC-ND-4.0",
        "licence_url": "https://x",
        "num_parameters": 1,
    }
    card = model_card(record, {})
    assert "**CC-BY-NC-ND-4.0** (https://x)" in card
    assert "do not publish these weights" in card
    assert "mstar embed --encoder mstar --weights" in card
    assert "generated" not in card


def test_mlflows_registry_knows_it(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Read back from SQLite; sending a record again adds no second version."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    hashes = {ENCODER: "12" * 32}
    tracker = start_tracking("stage2", FACTS, out=str(tmp_path))
    for _ in range(2):
        register(tracker, str(folder), "mstar-patch-encoder", FACTS, hashes)
    later = replace(FACTS, step=2000)
    register(tracker, str(folder), "mstar-patch-encoder", later, {ENCODER: "34" * 32})
    assert "in MLflow" in tracker.finish()

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    first, second = sorted(
        client.search_model_versions("name = 'mstar-patch-encoder'"), key=lambda v: int(v.version)
    )
    assert first.source == str(folder / ENCODER)
    assert (first.tags["step"], second.tags["step"]) == ("1234", "2000")
    assert first.tags["sha256"] == "12" * 32
    assert (first.tags["licence"], first.tags["data"]) == ("Apache-2.0", "generated")
    assert first.tags["metric.loss.a"] == "0.25"
    assert first.description.startswith("Patch encoder after stage 2, 1,234 steps")
    run = client.get_run(first.run_id)
    assert run.data.tags["mstar.run_id"] == tracker.run_id
    card = Path(run.info.artifact_uri.removeprefix("file://")) / CARD
    assert card.read_text() == (folder / CARD).read_text()


def test_without_a_name_nothing_is_registered(folder: Path) -> None:
    tracker = MemoryTracker()
    register(tracker, str(folder), "", FACTS, {ENCODER: "0"})
    assert CARD in tracker.artifacts
    assert tracker.models == []


@pytest.mark.slow
def test_vit_large_goes_all_the_way(tmp_path: Path) -> None:
    """The published architecture: 303 M parameters, plain timm, `--encoder mstar`."""
    weights = prepare_weights("uni", "random:0")
    student = build_student("uni", weights, target_dim=512).eval()
    export(str(tmp_path), student, replace(FACTS, encoder="uni"))
    np.save(tmp_path / "image.npy", np.zeros((1, 3, 224, 224), np.float32))
    call = (
        "timm.create_model('vit_large_patch16_224', img_size=224, patch_size=16, init_values=1e-5,"
        " num_classes=0, dynamic_img_size=True)"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN_TIMM, str(tmp_path), call], check=True
    )
    encoder = load_encoder("mstar", weights=str(tmp_path / ENCODER), device="cpu", batch_size=1)
    patch = np.full((1, 224, 224, 3), 128, np.uint8)
    with torch.no_grad():
        expected = student(student.prepare(torch.from_numpy(patch))).features.numpy()
    np.testing.assert_allclose(encoder.encode(patch), expected, rtol=1e-4, atol=1e-4)
