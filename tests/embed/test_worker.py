"""The worker on one process, without Ray: its features against plain loops, and its manners."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch

from mstar.embed.assembly import EmbedPlan, make_worker
from mstar.embed.plan import Bundle
from mstar.embed.worker import EmbedWorker
from mstar.features.files import SlideFeatures, read_features
from mstar.models.encoder_table import find_encoder
from mstar.models.patch_encoders import load_encoder, prepare_weights
from mstar.models.torchvision_ops import import_timm
from mstar.models.transforms import resize_patch
from mstar.schema import SlideRef
from mstar.slides.patches import read_patch
from mstar.slides.reader import open_slide
from support.cohorts import leftovers, quick_embed
from support.slides import SlideSpec, write_slide

BATCH = 8

# Centred relative L2 error against OpenSlide + PIL + timm's transform, float32. Seen: 2e-6 to 4e-6
# where the resize is equal bit for bit to PIL's, up to 4e-3 where it is off by one grey level.
MAX_CENTRED_ERROR = 0.02


def worker_for(slides: Path, out: Path, encoder: str = "vit_tiny", **fields: object) -> EmbedWorker:
    config = quick_embed(slides, out, encoder=encoder, dtype="float32", **fields)
    plan = EmbedPlan(
        config=config,
        run_id="test",
        weights=prepare_weights(encoder, "random:0"),
        device="cpu",
        precision="float32",
        batch_size=BATCH,
        torch_threads=1,
        reader_threads=2,
    )
    return make_worker(plan)


def embed(slide: Path, out: Path, encoder: str = "vit_tiny", **fields: object) -> SlideFeatures:
    worker = worker_for(slide.parent, out, encoder, **fields)
    tally = worker.run(Bundle(number=0, slides=(SlideRef(slide_id=slide.stem, uri=str(slide)),)))
    worker.close()
    assert tally.done == 1, tally
    return read_features(out / f"{slide.stem}.h5", check="full")


@pytest.fixture(params=["20x", "40x", "real"])
def slide(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "real":
        path: Path = request.getfixturevalue("real_slide")
        return path
    scale = {"20x": 1, "40x": 2}[request.param]
    spec = SlideSpec(width=1800 * scale, height=1500 * scale, mpp=0.5 / scale, objective=20 * scale)
    return write_slide(tmp_path / "slide.svs", spec)


def padded_batches(patches: list[np.ndarray]) -> list[np.ndarray]:
    """Batches of the full size, the last one padded with zeros."""
    whole = np.zeros((-(-len(patches) // BATCH) * BATCH, *patches[0].shape), np.uint8)
    whole[: len(patches)] = patches
    return list(whole.reshape(-1, BATCH, *patches[0].shape))


@pytest.mark.parametrize("encoder", ["vit_tiny", "resnet50_clam"])
def test_features_equal_a_plain_loop_bit_for_bit(encoder: str, slide: Path, tmp_path: Path) -> None:
    """Same kernel and batch shape, one patch after the other: equal in every bit of float32."""
    stored = embed(slide, tmp_path / "out", encoder)
    spec = find_encoder(encoder)
    loaded = load_encoder(encoder, weights="random:0", device="cpu", batch_size=BATCH, threads=1)
    opened = open_slide(slide)
    patches = [
        resize_patch(read_patch(opened, stored.grid, row), spec.input_px, spec.interpolation)
        for row in range(len(stored.grid))
    ]
    opened.close()
    plain = np.concatenate([loaded.encode(batch) for batch in padded_batches(patches)])
    assert len(stored.features) > BATCH  # more than one batch, the last one padded
    np.testing.assert_array_equal(stored.features, plain[: len(patches)])


def test_features_are_those_of_the_field_s_path(slide: Path, tmp_path: Path) -> None:
    """OpenSlide + PIL + timm's transform, `prepath`: centred error far below a neighbour's."""
    from mstar.slides.grid import GridConfig

    stored = embed(slide, tmp_path / "out", grid=GridConfig(grid_mode="prepath"))
    timm = import_timm()
    transform = timm.data.create_transform(
        input_size=(3, 224, 224),
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        crop_pct=1.0,
    )
    grid, side = stored.grid, stored.grid.read_px
    handle = openslide.OpenSlide(slide)
    images = [
        transform(handle.read_region((int(x), int(y)), 0, (side, side)).convert("RGB"))
        for x, y in grid.coords
    ]
    loaded = load_encoder("vit_tiny", weights="random:0", device="cpu", batch_size=BATCH, threads=1)
    with torch.inference_mode():
        theirs = loaded._model(torch.stack(images)).numpy()
    mean = theirs.mean(axis=0)

    def error(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
        centred = np.linalg.norm(reference - mean, axis=1)
        return np.linalg.norm(ours - reference, axis=1) / centred

    assert error(stored.features, theirs).max() < MAX_CENTRED_ERROR
    assert error(stored.features[1:], theirs[:-1]).min() > 2 * MAX_CENTRED_ERROR  # it can fail


def test_the_encoder_s_trouble_is_no_slide_s(tmp_path: Path) -> None:
    """An encoder that fails raises out of the call; slides are handed back, not blamed."""
    slide = write_slide(tmp_path / "slides" / "a.svs", SlideSpec(width=1800, height=1500))
    worker = worker_for(slide.parent, tmp_path / "out")

    def broken(batch: np.ndarray) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    worker._encoder.encode_async = broken  # type: ignore[method-assign]
    bundle = Bundle(number=0, slides=(SlideRef(slide_id="a", uri=str(slide)),))
    with pytest.raises(RuntimeError, match="device-side"):
        worker.run(bundle)
    worker.close()
    assert leftovers(tmp_path / "out") == []
    assert not list((tmp_path / "out" / "failures").glob("*"))
    again = embed(slide, tmp_path / "out")
    assert len(again.features) > 0


def test_finished_parts_survive_and_foreign_ones_do_not(tmp_path: Path) -> None:
    """A part left by an earlier try is used; one of other settings is dropped; same bytes."""
    slide = write_slide(tmp_path / "slides" / "a.svs", SlideSpec(width=2600, height=2300))
    whole = embed(slide, tmp_path / "whole", bundle_batches=1)
    out = tmp_path / "resumed"
    worker = worker_for(slide.parent, out, bundle_batches=1)
    grid, store = whole.grid, worker._writer.store
    assert len(grid) > 2 * BATCH
    store.write_part("a", 0, BATCH, whole.features[:BATCH], grid=grid)
    tampered = replace(grid, coords=grid.coords + 1)
    store.write_part("a", BATCH, 2 * BATCH, whole.features[:BATCH], grid=tampered)
    bundle = Bundle(number=0, slides=(SlideRef(slide_id="a", uri=str(slide)),))
    tally = worker.run(bundle)
    worker.close()
    assert tally.done == 1
    assert tally.patches == len(grid) - BATCH  # the usable part was not done again
    assert (out / "a.h5").read_bytes() == (tmp_path / "whole" / "a.h5").read_bytes()
    assert leftovers(out) == []
