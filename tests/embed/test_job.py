"""The embedding job on Ray: the same bytes however it ran; one slide's trouble stays its own."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mstar.embed import job
from mstar.embed.config import EmbedConfig
from mstar.errors import StoreMismatchError
from mstar.features.files import read_features
from mstar.slides.tissue import TissueConfig
from mstar.storage.ledger import FailureLedger
from mstar.training.exit_codes import ExitCode
from support.cohorts import leftovers, output_digests, quick_embed, ray_processes
from support.slides import (
    SlideSpec,
    write_non_image,
    write_slide,
    write_truncated,
    write_undecodable_tile,
    write_without_mpp,
    write_zero_byte,
)

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_results_do_not_depend_on_workers_bundles_chunks_or_readers(
    slides: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Every way of cutting and spreading the work writes the same bytes."""
    ways = {
        "two workers": quick_embed(slides, tmp_path / "a", workers=2),
        "one chunk a slide, four reader threads": quick_embed(
            slides, tmp_path / "b", bundle_batches=64, reader_threads=4
        ),
        "reader actors": quick_embed(slides, tmp_path / "c", reader_workers=2),
    }
    for way, config in ways.items():
        assert job.run(config) == ExitCode.COMPLETE, way
        assert output_digests(Path(config.out)) == undisturbed, way
        assert leftovers(Path(config.out)) == [], way


def test_a_second_run_does_nothing(
    slides: Path, undisturbed: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick_embed(slides, tmp_path / "out")
    assert job.run(config) == ExitCode.COMPLETE
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.h5")}
    capsys.readouterr()
    assert job.run(config) == ExitCode.COMPLETE
    assert "(0 by this run)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_only_what_is_missing_is_done(
    slides: Path, undisturbed: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick_embed(slides, tmp_path / "out")
    assert job.run(config) == ExitCode.COMPLETE
    sorted((tmp_path / "out").rglob("*.h5"))[2].unlink()
    capsys.readouterr()
    assert job.run(config) == ExitCode.COMPLETE
    assert "(1 by this run)" in capsys.readouterr().out
    assert output_digests(tmp_path / "out") == undisturbed


def test_another_configuration_into_the_same_store_is_refused(
    slides: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    config = quick_embed(slides, tmp_path / "out")
    assert job.run(config) == ExitCode.COMPLETE
    before = output_digests(tmp_path / "out")
    with pytest.raises(StoreMismatchError, match="dtype"):
        job.run(replace(config, dtype="float32"))
    assert output_digests(tmp_path / "out") == before


class TestKilled:
    """`kill -9` of a worker at any moment: the same bytes, nothing half-written ever seen."""

    @pytest.mark.parametrize(
        "moment",
        [
            pytest.param("claimed", marks=pytest.mark.slow),
            "a part is written",
            pytest.param("a slide is done", marks=pytest.mark.slow),
        ],
    )
    def test_encoder_actor(
        self, moment: str, slides: Path, undisturbed: dict[str, str], tmp_path: Path
    ) -> None:
        config = quick_embed(slides, tmp_path / "out")
        kills = self.run_and_kill(config, moment, "BundleActor")
        assert kills, "the job ended before anything was killed"
        self.check(config, undisturbed)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["claimed", "a part is written", "a slide is done"])
    def test_reader_actor(
        self, moment: str, slides: Path, undisturbed: dict[str, str], tmp_path: Path
    ) -> None:
        config = quick_embed(slides, tmp_path / "out", reader_workers=1)
        kills = self.run_and_kill(config, moment, "ReaderActor")
        assert kills, "the job ended before anything was killed"
        self.check(config, undisturbed)

    def run_and_kill(self, config: EmbedConfig, moment: str, actor: str) -> list[int]:
        out, kills, over = Path(config.out), [], threading.Event()
        pattern = {
            "claimed": "_state/attempts/**/*.json",
            "a part is written": "_state/parts/**/*.part",
            "a slide is done": "*.h5",
        }[moment]

        def watch() -> None:
            import os
            import signal

            while not over.is_set():
                for path in out.rglob("*.h5"):  # whatever has its final name is whole
                    read_features(path, check="full")
                if not kills and any(out.glob(pattern)):
                    for pid in ray_processes(actor):
                        os.kill(pid, signal.SIGKILL)
                        kills.append(pid)
                time.sleep(0.02)

        errors: list[BaseException] = []

        def guarded() -> None:
            try:
                watch()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        try:
            code = job.run(config)
        finally:
            over.set()
            thread.join()
        assert not errors, errors
        assert code == ExitCode.COMPLETE
        return kills

    def check(self, config: EmbedConfig, undisturbed: dict[str, str]) -> None:
        assert output_digests(Path(config.out)) == undisturbed
        assert leftovers(Path(config.out)) == []


def test_one_bad_slide_never_kills_a_cohort(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truncated, no image, empty, without mpp, one bad tile, odd names, `../` in an id."""
    slides = tmp_path / "slides"
    slides.mkdir()
    good = write_slide(slides / "good – ünïcode name.svs", SlideSpec(seed=1))
    write_truncated(slides / "truncated.svs", SlideSpec(seed=2))
    write_non_image(slides / "non_image.svs")
    write_zero_byte(slides / "zero_byte.svs")
    write_without_mpp(slides / "no_mpp.svs", SlideSpec(seed=3))
    write_undecodable_tile(slides / "bad_tile.svs", SlideSpec(seed=4), tile=5)
    manifest = tmp_path / "slides.csv"
    rows = [f"{path},{path.stem}" for path in sorted(slides.iterdir())]
    rows += [f"{good},../evil", f"{tmp_path / 'missing.svs'},missing"]
    manifest.write_text("path,slide_id\n" + "\n".join(rows) + "\n", encoding="utf-8")

    config = quick_embed(manifest, tmp_path / "out" / "features")
    assert job.run(config) == ExitCode.EXCLUSIONS
    failures = {f.slide_id: f for f in FailureLedger(f"{config.out}/failures").all()}
    assert set(failures) == {
        "truncated", "non_image", "zero_byte", "no_mpp", "../evil", "missing"
    }  # fmt: skip
    assert failures["no_mpp"].kind == "MppError"
    assert "--slide-mpp" in failures["no_mpp"].message
    for slide_id, failure in failures.items():
        assert failure.message, slide_id
        assert slide_id in failure.message or slides.name in failure.message, failure.message
    assert failures["zero_byte"].permanent
    done = {path.stem for path in Path(config.out).rglob("*.h5")}
    assert done == {"good – ünïcode name", "bad_tile"}
    # No path escaped the output.
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"features"}
    assert not list(tmp_path.glob("evil*"))
    assert not list(tmp_path.rglob("evil.h5"))
    # The patch that could not be read is left out and recorded, not replaced by a blank one.
    spoilt = read_features(Path(config.out) / "bad_tile.h5", check="full")
    assert len(spoilt.unreadable) >= 1
    assert len(spoilt.features) == len(spoilt.grid)
    left_out = {tuple(xy) for xy in spoilt.unreadable.coords.tolist()}
    assert not left_out & {tuple(xy) for xy in spoilt.grid.coords.tolist()}

    # Within the allowance the exit code is 0, and permanent failures are not tried again.
    capsys.readouterr()
    again = replace(config, run=replace(config.run, max_failures="6"))
    assert job.run(again) == ExitCode.COMPLETE
    assert "6 exclusions" in capsys.readouterr().out


@pytest.mark.slow
def test_bad_patches_fail_the_slide_when_asked(tmp_path: Path, local_ray: None) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_undecodable_tile(slides / "bad_tile.svs", SlideSpec(seed=4), tile=5)
    config = quick_embed(slides, tmp_path / "out", bad_patches="fail")
    assert job.run(config) == ExitCode.EXCLUSIONS
    (failure,) = FailureLedger(f"{config.out}/failures").all()
    assert "--bad-patches skip" in failure.message
    assert not list(Path(config.out).rglob("*.h5"))


@pytest.mark.slow
def test_a_slide_without_tissue_is_an_empty_file(tmp_path: Path, local_ray: None) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_slide(slides / "empty.svs", SlideSpec(tissue=False))
    config = quick_embed(slides, tmp_path / "out")
    assert job.run(config) == ExitCode.COMPLETE
    empty = read_features(Path(config.out) / "empty.h5")
    assert empty.features.shape == (0, 192)
    assert empty.grid.coords.shape == (0, 2)


def test_dry_run_writes_nothing(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick_embed(slides, tmp_path / "out", dry_run=True)
    assert job.run(config) == ExitCode.COMPLETE
    assert "would do 6 of 6 slides" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rows_are_the_grid_rows(slides: Path, tmp_path: Path, local_ray: None) -> None:
    """Coordinates are row-major and features finite, in the order of the grid."""
    config = quick_embed(slides, tmp_path / "out", dtype="float32")
    assert job.run(config) == ExitCode.COMPLETE
    for path in Path(config.out).rglob("*.h5"):
        stored = read_features(path, check="full")
        order = np.lexsort((stored.grid.coords[:, 0], stored.grid.coords[:, 1]))
        assert (order == np.arange(len(order))).all()
        assert stored.features.dtype == np.float32


def test_the_run_is_in_mlflow(
    slides: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Config, versions, rates, counts, failure table and contact sheet, read back by the client."""
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "out"
    assert job.run(quick_embed(slides, out, tracking=True)) == ExitCode.COMPLETE
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("embed")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["encoder"] == "vit_tiny"
    assert run.data.params["settled.torch_threads"].isdigit()
    assert run.data.tags["licence"] == "Apache-2.0"
    assert run.data.metrics["slides_done"] == len(undisturbed)
    assert run.data.metrics["patches"] > 0
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "contact_sheet.jpg", "failures.tsv", "summary.txt"} <= names
    assert output_digests(out) == undisturbed


@pytest.mark.slow
def test_annotations_replace_the_found_tissue(
    slides: Path, tmp_path: Path, local_ray: None
) -> None:
    """Contours drawn by hand decide where patches lie."""
    name = sorted(slides.iterdir())[0].stem
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    square = [[0, 0], [1024, 0], [1024, 1024], [0, 1024], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"objectType": "annotation"},
    }
    (drawn / f"{name}.geojson").write_text(json.dumps(feature))
    tissue = TissueConfig(white_thresh=0.0, black_thresh=0.0)
    config = quick_embed(
        slides / f"{name}.svs", tmp_path / "out", annotations=str(drawn), tissue=tissue
    )
    assert job.run(config) == ExitCode.COMPLETE
    (path,) = Path(config.out).rglob("*.h5")
    coords = read_features(path).grid.coords
    expected = [[256 * column, 256 * row] for row in range(4) for column in range(4)]
    assert coords.tolist() == expected
