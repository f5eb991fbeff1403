"""`embed` end to end, against the bare encoder, the same loop without Ray, and the field's loop.

All four run on the same slides, patches, encoder and cores, one after the other in rounds, in one
process; medians of the rounds' ratios are printed as JSON lines. Ray's start and the building of
the encoder are reported apart.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openslide
import torch
from torch.utils.data import DataLoader, Dataset

from mstar.embed.assembly import EmbedPlan, make_worker, worker_factory
from mstar.embed.config import EmbedConfig, RunConfig
from mstar.embed.pipeline import CALLS_PER_ACTOR, PoolShape, run_bundles
from mstar.embed.plan import Bundle, write_plan
from mstar.features.files import read_grid
from mstar.models.patch_encoders import load_encoder, prepare_weights
from mstar.models.torchvision_ops import import_timm
from mstar.recipes.embed import debug
from mstar.schema import SlideRef
from mstar.storage.objects import delete_tree
from mstar.training.cluster import ray_session
from support.slides import SlideSpec, write_slide


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured on."""

    encoder: str
    threads: int
    batch_size: int
    num_slides: int
    side_px: int
    device: str


def make_slides(folder: Path, setting: Setting) -> list[SlideRef]:
    """Generated 40x slides (0.25 µm per pixel), so that a patch is 512 px read and 256 px kept."""
    slides = []
    for number in range(setting.num_slides):
        side = setting.side_px
        spec = SlideSpec(width=side, height=side, mpp=0.25, objective=40, seed=number, full=True)
        path = write_slide(folder / f"s{number}.svs", spec)
        size = path.stat().st_size
        slides.append(SlideRef(slide_id=path.stem, uri=str(path), size_bytes=size))
    return slides


def plan_for(config: EmbedConfig, setting: Setting) -> EmbedPlan:
    """The settled plan of every variant: equal threads, batch and encoder."""
    return EmbedPlan(
        config=config,
        run_id="bench",
        weights=prepare_weights(config.encoder, config.weights),
        device=setting.device,
        precision="float32" if setting.device == "cpu" else "bfloat16",
        batch_size=setting.batch_size,
        torch_threads=setting.threads,
        reader_threads=setting.threads,
    )


def bare_encoder(setting: Setting, num_patches: int) -> Callable[[], float]:
    """Patches per second of the encoder alone on batches in memory."""
    encoder = load_encoder(
        setting.encoder,
        weights="random:0",
        device=setting.device,
        batch_size=setting.batch_size,
        threads=setting.threads,
    )
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 255, (setting.batch_size, 224, 224, 3), np.uint8)
    num_batches = max(1, num_patches // setting.batch_size)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(num_batches):
            encoder.encode(batch)
        return num_batches * setting.batch_size / (time.perf_counter() - started)

    return run


def without_ray(config: EmbedConfig, setting: Setting, slides: list[SlideRef]) -> float:
    """Patches per second of the worker in this process, encoder built before the clock starts."""
    delete_tree(config.out)
    worker = make_worker(plan_for(config, setting))
    started = time.perf_counter()
    tally = worker.run(Bundle(number=0, slides=tuple(slides)))
    seconds = time.perf_counter() - started
    worker.close()
    assert tally.done == len(slides)
    return tally.patches / seconds


def through_ray(
    config: EmbedConfig, setting: Setting, slides: list[SlideRef]
) -> tuple[float, float]:
    """Patches per second in the steady state, and seconds until the first bundle was done."""
    delete_tree(config.out)
    Path(config.out).mkdir(parents=True)
    plan_path = Path(config.out) / "plan.parquet"
    bundles = [Bundle(number=i, slides=(slide,)) for i, slide in enumerate(slides)]
    write_plan(plan_path, bundles)
    factory = worker_factory(plan_for(config, setting))
    started, ends, patches = time.perf_counter(), [], []
    for tally in run_bundles(str(plan_path), factory, PoolShape(workers=1, num_cpus=1)):
        assert tally.done == 1
        ends.append(time.perf_counter())
        patches.append(tally.patches)
    # A worker has two bundles in hand, which end close together: the clock starts with the third.
    steady = sum(patches[CALLS_PER_ACTOR:]) / (ends[-1] - ends[CALLS_PER_ACTOR - 1])
    return steady, ends[0] - started


class FieldPatches(Dataset):  # type: ignore[type-arg]
    """The field's dataset: OpenSlide, PIL, torchvision's transform, one slide at a time."""

    def __init__(self, path: str, coords: np.ndarray, side_px: int) -> None:
        """Patches of one slide."""
        from torchvision import transforms

        self.path, self.coords, self.side_px = path, coords, side_px
        self.slide: openslide.OpenSlide | None = None
        self.transform = transforms.Compose(
            [
                transforms.Resize(224),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.coords)

    def __getitem__(self, index: int) -> torch.Tensor:
        """One normalised patch."""
        if self.slide is None:
            self.slide = openslide.OpenSlide(self.path)
        x, y = map(int, self.coords[index])
        patch = self.slide.read_region((x, y), 0, (self.side_px, self.side_px)).convert("RGB")
        tensor: torch.Tensor = self.transform(patch)
        return tensor


def field_loop(setting: Setting, slides: list[SlideRef], grids: Path) -> float:
    """Patches per second of a DataLoader a slide with as many workers as the box has cores."""
    model = import_timm().create_model("vit_tiny_patch16_224", num_classes=0).eval()
    model.to(setting.device)
    torch.set_num_threads(setting.threads)
    started, patches = time.perf_counter(), 0
    for slide in slides:
        grid = read_grid(grids / f"{slide.slide_id}.h5")
        data = FieldPatches(slide.uri, grid.coords, grid.patch_size_l0)
        loader = DataLoader(data, batch_size=setting.batch_size, num_workers=setting.threads)
        with torch.inference_mode():
            outputs = [model(batch.to(setting.device)).cpu() for batch in loader]
        patches += sum(map(len, outputs))
    return patches / (time.perf_counter() - started)


def measure(setting: Setting, rounds: int) -> None:
    """Run every variant in turn, `rounds` times, and print the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        slides = make_slides(Path(folder) / "slides", setting)
        config = replace(
            debug(),
            slides="unused",
            out=str(Path(folder) / "features"),
            encoder=setting.encoder,
            run=RunConfig(tracking=False),
        )
        first = without_ray(config, setting, slides)  # warms caches and makes the grids
        grids = Path(folder) / "grids"
        grids.mkdir()
        for made in (Path(config.out) / "_grids").glob("*.hdf5"):
            made.rename(grids / f"{made.stem}.h5")
        config = replace(config, grids=str(grids))
        num_patches = sum(len(read_grid(path)) for path in grids.glob("*.h5"))
        bare = bare_encoder(setting, num_patches)
        rates: dict[str, list[float]] = {"bare": [], "plain": [], "ray": [], "field": []}
        starts = []
        with ray_session():
            for _ in range(rounds):
                rates["bare"].append(bare())
                rates["plain"].append(without_ray(config, setting, slides))
                rate, start = through_ray(config, setting, slides)
                rates["ray"].append(rate)
                starts.append(start)
                rates["field"].append(field_loop(setting, slides, grids))
        report(setting, rates, starts, num_patches, first)


def report(
    setting: Setting,
    rates: dict[str, list[float]],
    starts: list[float],
    num_patches: int,
    first: float,
) -> None:
    """Print medians and ratios."""
    median = {name: statistics.median(values) for name, values in rates.items()}
    base = {"bench": "embed", "encoder": setting.encoder, "device": setting.device}
    for name, above, below, target in (
        ("worker / bare encoder", "plain", "bare", 0.90),
        ("job through Ray / bare encoder", "ray", "bare", 0.90),
        ("job through Ray / same loop without Ray", "ray", "plain", 0.85),
        ("job through Ray / DataLoader per slide", "ray", "field", None),
    ):
        pairs = [a / b for a, b in zip(rates[above], rates[below], strict=True)]
        row = base | {"row": name, "ratio": round(statistics.median(pairs), 3), "target": target}
        row |= {"min": round(min(pairs), 3), "max": round(max(pairs), 3)}
        print(json.dumps(row), flush=True)
    print(
        json.dumps(
            base
            | {"row": "patches/s", "patches": num_patches, "threads": setting.threads}
            | {name: round(value, 1) for name, value in median.items()}
            | {"start_and_first_bundle_s": round(statistics.median(starts), 1)}
            | {"first_round_plain": round(first, 1)}
        ),
        flush=True,
    )


def main() -> None:
    """Parse the size of the measurement and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="vit_tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--side-px", type=int, default=7168)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    setting = Setting(
        encoder=given.encoder,
        threads=given.threads,
        batch_size=given.batch_size,
        num_slides=given.slides,
        side_px=given.side_px,
        device=given.device,
    )
    measure(setting, given.rounds)


if __name__ == "__main__":
    main()
