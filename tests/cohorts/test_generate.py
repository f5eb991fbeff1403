"""`mstar cohort generate`: equal bytes however it ran, a cohort that reads back, no shortcuts."""

import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mstar.cli.main import main
from mstar.cohorts.generate import GenerateConfig, run
from mstar.cohorts.generated import slide_pool
from mstar.cohorts.generated.factors import SlideFactors, iter_cases
from mstar.data.cases import read_cases
from mstar.data.labels import read_class_labels
from mstar.data.reports import read_reports
from mstar.data.rna.store import ExpressionStore
from mstar.errors import CohortError, ConfigError
from mstar.schema import SlideRef
from mstar.storage import objects
from mstar.storage.manifest import read_slides
from support.s3 import make_bucket

SMALL = GenerateConfig(
    out="unused", cases=10, slide_px=256, patch_px=128, num_genes=200, seed=5, workers=1
)
NUM_PROBED = 200


def make(out: Path, **fields: object) -> GenerateConfig:
    return replace(SMALL, out=str(out), **fields)  # type: ignore[arg-type]


def digests(folder: Path) -> dict[str, str]:
    """Name → sha256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cohort, painted in this process."""
    folder = tmp_path_factory.mktemp("generated") / "c"
    assert run(make(folder)) == 0
    return folder


def test_two_processes_give_the_bytes_of_one(made: Path, tmp_path: Path) -> None:
    assert run(make(tmp_path / "other", workers=2)) == 0
    assert digests(tmp_path / "other") == digests(made)


def test_another_seed_gives_another_cohort(made: Path, tmp_path: Path) -> None:
    run(make(tmp_path, seed=6))
    ours, theirs = digests(made), digests(tmp_path)
    same = {name for name in ours if ours[name] == theirs.get(name)}
    assert same <= {
        "tasks.csv",
        "signatures.csv",
        "truth/genes.csv",
        "truth/fact_phrases.csv",
        "expression/genes.csv",
    }


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted: list[str] = []
    real = slide_pool.paint_one

    def stops_at_the_fifth(config: GenerateConfig, slide: SlideFactors) -> int:
        if len(painted) == 4:
            raise KeyboardInterrupt
        painted.append(slide.slide_id)
        return real(config, slide)

    with monkeypatch.context() as patch:
        patch.setattr(slide_pool, "paint_one", stops_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            run(make(tmp_path))
    assert not (tmp_path / "cohort.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "slides").iterdir()}
    assert len(kept) == 4
    run(make(tmp_path))
    assert digests(tmp_path) == digests(made)
    assert all((tmp_path / "slides" / n).stat().st_mtime_ns == at for n, at in kept.items())


def test_a_cohort_in_a_bucket_has_the_bytes_of_one_on_disk(s3_server: str, made: Path) -> None:
    out = f"{make_bucket('generated')}/c"
    assert run(replace(make(made), out=out)) == 0
    infos = [*objects.list_files(out)]
    found = {i.rel: hashlib.sha256(objects.read_bytes(i.uri)).hexdigest() for i in infos}
    assert found == digests(made)


def test_done_again_it_paints_nothing(
    tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(made)
    times = {path: path.stat().st_mtime_ns for path in (made / "slides").iterdir()}
    assert run(make(made)) == 0
    assert "0 painted by this run" in capsys.readouterr().out
    assert digests(made) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_lost_slide_is_painted_again_as_it_was(tmp_path: Path, made: Path) -> None:
    run(make(tmp_path))
    (
        tmp_path / "slides" / sorted(path.name for path in (tmp_path / "slides").iterdir())[2]
    ).unlink()
    run(make(tmp_path))
    assert digests(tmp_path) == digests(made)


def test_other_settings_are_refused_but_labels_may_be_added(made: Path) -> None:
    with pytest.raises(CohortError, match="seed: expected 5, found 7"):
        run(make(made, seed=7))
    before = digests(made)
    assert run(make(made, labels="tcga_brca_os,panda_isup_grade")) == 0
    after = digests(made)
    added = {"labels/tcga_brca_os.csv", "labels/panda_isup_grade.csv"}
    assert {name: after[name] for name in after if name not in added} == before
    for name in added:
        (made / name).unlink()


def test_the_cohort_reads_back(made: Path) -> None:
    factors = {case.case_id: case for case in iter_cases(make(made))}
    cases = read_cases(str(made / "cases.csv"))
    assert [case.case_id for case in cases] == sorted(factors)
    slides = {slide.slide_id: slide for slide in read_slides(str(made / "slides.csv"))}
    reports = read_reports(str(made / "reports.csv"))
    store = ExpressionStore(str(made / "expression"))
    for case in cases:
        true = factors[case.case_id]
        assert (case.cancer_type, case.site) == (true.cancer_type, true.site)
        assert (case.os_months, case.os_event) == (true.os_months, true.os_event)
        assert len(case.slides) == true.num_slides
        assert (case.report is not None, case.rna is not None) == (true.has_report, true.has_rna)
    assert set(slides) == {slide for case in cases for slide in case.slides}
    assert set(reports) == {case.report for case in cases if case.report}
    assert set(store.case_ids) == {case.rna for case in cases if case.rna}
    record = json.loads((made / "cohort.json").read_text())
    assert (record["data_source"], record["exclusions"]) == ("generated", {})
    for slide in slides.values():
        assert isinstance(slide, SlideRef)
        with openslide.OpenSlide(slide.uri) as opened:
            assert opened.properties["openslide.vendor"] == "aperio"
            assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(slide.mpp)


def test_expression_is_what_was_written(made: Path) -> None:
    counts = pd.read_csv(made / "rna.tsv", sep="\t", index_col=0)
    store = ExpressionStore(str(made / "expression"))
    expected = np.log1p(counts[list(store.case_ids)].loc[list(store.genes)].to_numpy().T)
    np.testing.assert_allclose(store.rows(list(store.case_ids)), expected, rtol=1e-6)


def test_every_cell_of_every_slide_has_its_truth(made: Path) -> None:
    patches = pd.read_parquet(made / "truth/patches.parquet")
    slides = {s.slide_id: s for s in read_slides(str(made / "slides.csv"))}
    assert set(patches["slide_id"]) == set(slides)
    assert not patches.duplicated(["slide_id", "x_l0", "y_l0"]).any()
    for slide_id, cells in patches.groupby("slide_id"):
        with openslide.OpenSlide(slides[slide_id].uri) as opened:
            width, height = opened.dimensions
        assert (cells[["x_l0", "y_l0"]].min() == 0).all()
        assert (cells["x_l0"] + cells["size_l0_px"] <= width + 1).all()
        assert (cells["y_l0"] + cells["size_l0_px"] <= height + 1).all()
        assert (cells["case_id"] == slides[slide_id].case_id).all()
        for factor in ("mutation", "pathway"):
            assert cells[f"signal_{factor}"].any()
            assert (cells.loc[cells[f"signal_{factor}"], "tissue"] > 0).all()
    assert not list((made / "truth").glob("cells/*"))


def test_cells_are_chosen_alike_with_and_without_the_mutation(probed: pd.DataFrame) -> None:
    found = roc_auc_score(probed["mutation"], probed["signal_cells"])
    assert found == pytest.approx(0.5, abs=3.5 * standard_error(probed["mutation"]))


def test_the_summary_is_one_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cohort", "generate", "--out", str(tmp_path / "c"), "--dry-run"]) == 0
    assert "would make 24 cases" in capsys.readouterr().out
    assert not (tmp_path / "c").exists()
    small = ["--cases", "8", "--slide-px", "256", "--patch-px", "128", "--num-genes", "200"]
    out = str(tmp_path / "c")
    assert main(["cohort", "generate", "--out", out, *small, "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 40
    for word in ("8 of 8", "slide–report", "painted by this run", "planted_mutation", "truth/"):
        assert word in text


def test_a_wrong_task_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--labels"):
        run(make(tmp_path / "c", labels="no_such_task"))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("missing", ["wsi", "report", "rna"])
def test_a_modality_may_be_missing_altogether(missing: str, tmp_path: Path) -> None:
    assert run(make(tmp_path, cases=8, **{f"missing_{missing}": 1.0})) == 0
    counts = json.loads((tmp_path / "cohort.json").read_text())["counts"]
    assert counts[missing] == counts["all_three"] == 0
    assert counts["cases"] == 8


# ── shortcuts ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What can be told of each case without looking at morphology, words or single genes."""
    folder = tmp_path_factory.mktemp("probe")
    rates = {"missing_report": 0.0, "missing_rna": 0.0, "slides_per_case_max": 1}
    run(make(folder, cases=NUM_PROBED, seed=0, patch_px=64, **rates))
    truth = pd.read_csv(folder / "truth/cases.csv", index_col="case_id")
    patches = pq.read_table(folder / "truth/patches.parquet").to_pandas()
    patches = patches[patches["tissue"] >= 0.25]
    reports = pd.read_csv(folder / "sources/reports_raw.csv", index_col="case_id")["text"]
    frame = pd.DataFrame(
        {
            "mutation": truth["mutation"],
            "patches": patches.groupby("case_id").size(),
            "report_chars": reports.str.len(),
            "library": pd.read_csv(folder / "rna.tsv", sep="\t", index_col=0).sum(),
            **{site: truth["site"] == site for site in sorted(truth["site"].unique())},
        }
    ).astype(float)
    slides = {s.case_id: s for s in read_slides(str(folder / "slides.csv"))}
    return (
        frame.fillna(0.0)
        .join(pd.DataFrame({c: of_file(s) for c, s in slides.items()}).T)
        .join(patches.groupby("case_id")["signal_mutation"].mean().rename("signal_cells"))
    )


def of_file(slide: SlideRef) -> dict[str, float]:
    with openslide.OpenSlide(slide.uri) as opened:
        width, height = opened.dimensions
        pixels = np.asarray(opened.read_region((0, 0), 0, (width, height)).convert("RGB"))
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    return {
        "file_bytes": float(Path(slide.uri).stat().st_size),
        "width": float(width),
        "height": float(height),
        "mpp": float(slide.mpp or 0),
        "red": red,
        "green": green,
        "blue": blue,
    }


def standard_error(truth: pd.Series) -> float:
    """Of the area under the curve of a score that tells nothing (Mann-Whitney)."""
    positive, negative = int(truth.sum()), int((1 - truth).sum())
    return math.sqrt((positive + negative + 1) / (12 * positive * negative))


def shortcut_names(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if name not in ("mutation", "signal_cells")]


def probe_auc(features: pd.DataFrame, truth: pd.Series) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, solver="liblinear"))
    scores = cross_val_predict(model, features, truth, cv=10, method="decision_function")
    return float(roc_auc_score(truth, scores))


def test_no_single_shortcut_tells_the_mutation(probed: pd.DataFrame) -> None:
    assert len(probed) == NUM_PROBED
    names = shortcut_names(probed)
    assert {"patches", "file_bytes", "mpp", "library", "report_chars", "S01", "red"} <= set(names)
    bound = 3.5 * standard_error(probed["mutation"])  # of 14 shortcuts by chance 1 in 150
    found = {name: roc_auc_score(probed["mutation"], probed[name]) for name in names}
    assert {name: auc for name, auc in found.items() if abs(auc - 0.5) > bound} == {}


def test_all_shortcuts_together_do_not_tell_it_either(probed: pd.DataFrame) -> None:
    truth, shortcuts = probed["mutation"], probed[shortcut_names(probed)]
    bound = 0.5 + 3 * standard_error(truth)
    assert probe_auc(shortcuts, truth) < bound
    leak = truth + np.random.default_rng(0).normal(0, 1, len(truth))
    assert probe_auc(shortcuts.assign(leak=leak), truth) > bound  # the probe would find one


# ── slow ─────────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
import resource, sys
from dataclasses import replace
from mstar.cohorts.generate import GenerateConfig, run, write_tables
from mstar.cohorts.generated.factors import iter_cases
if __name__ == "__main__":
    config = GenerateConfig(out=sys.argv[1], cases=10_000, labels="all")
    if sys.argv[2] == "tables":
        write_tables(config, list(iter_cases(config)))
    else:
        run(replace(config, missing_wsi=1.0))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["tables", "run without slides"])
def test_ten_thousand_cases_need_less_than_a_gigabyte(what: str, tmp_path: Path) -> None:
    start_s = time.monotonic()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), what]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    rss_kib = int(found.stdout.split()[-1])
    print(f"{what}: {rss_kib / 1024:.0f} MiB, {time.monotonic() - start_s:.0f} s")
    assert rss_kib * 1024 < 1e9
    with (tmp_path / "rna.tsv").open() as file:
        assert 8_800 < file.readline().count("\t") < 9_200
    labelled = read_class_labels(str(tmp_path / "labels/planted_grade.csv"))
    assert len(labelled) == (10_000 if what == "tables" else 0)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_leaves_no_process(tmp_path: Path, made: Path) -> None:
    program = (
        "from mstar.cli.main import main\n"
        "if __name__ == '__main__': import sys; sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "job.py").write_text(program)
    out = tmp_path / "c"
    settings = [
        "--cases", "10", "--slide-px", "256", "--patch-px", "128", "--num-genes", "200",
        "--seed", "5", "--workers", "2",
    ]  # fmt: skip
    command = [sys.executable, str(tmp_path / "job.py"), "cohort", "generate"]
    started = subprocess.Popen([*command, "--out", str(out), *settings], stderr=subprocess.DEVNULL)
    for _ in wait_for(lambda: len(list(out.glob("slides/*.svs"))) >= 2):
        assert started.poll() is None
    children = subprocess.run(
        ["ps", "--ppid", str(started.pid), "-o", "pid="], capture_output=True, text=True, check=True
    ).stdout.split()
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert children
    for _ in wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children)):
        pass
    assert run(make(out)) == 0
    assert digests(out) == digests(made)


def wait_for(done: "object") -> Iterator[None]:
    deadline_s = time.monotonic() + 60
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline_s
        yield
        time.sleep(0.02)
