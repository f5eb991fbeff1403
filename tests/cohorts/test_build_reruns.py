"""The build job again, killed, elsewhere: the same cohort; what it refuses is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mstar.cohorts import build
from mstar.cohorts.build import BuildConfig, run
from mstar.data.rna.config import ExpressionConfig
from mstar.errors import CohortError, ConfigError, TableError
from mstar.storage import objects
from mstar.storage.manifest import read_slides
from support.cohort_sources import REPORTS, SLIDES, contents, write_sources


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    """Sources in a folder of the test's own."""
    return write_sources(tmp_path)


def test_again_does_nothing(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run writes no file; a build elsewhere gives the same bytes."""
    run(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")}
    capsys.readouterr()
    assert run(config) == 0
    assert {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")} == before
    assert "nothing to do" in capsys.readouterr().out
    elsewhere = replace(config, out=config.out + "2")
    run(elsewhere)
    assert contents(elsewhere.out) == contents(config.out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sections": ("DX", "TS")}, ["sections", "'TS'"]),
        ({"rna_samples": ("01",)}, ["rna_samples"]),
        (
            {"expression": ExpressionConfig(unit="rsem", transform="none", log_base="2")},
            ["expression.log_base", "'e'", "'2'"],
        ),
        ({"reports": None}, ["contents of reports"]),
    ],
)
def test_another_configuration_is_refused(
    config: BuildConfig, change: dict[str, object], words: list[str]
) -> None:
    """The difference is said, nothing is touched, and deleting the record allows it."""
    run(config)
    before = contents(config.out)
    other = replace(config, **change)  # type: ignore[arg-type]
    with pytest.raises(CohortError) as caught:
        run(other)
    assert [word for word in words if word not in str(caught.value)] == []
    assert contents(config.out) == before
    (Path(config.out) / "cohort.json").unlink()
    (Path(config.out) / "cases.csv").unlink()
    assert run(other) == 0


def test_changed_sources_are_refused(config: BuildConfig, tmp_path: Path) -> None:
    """By content, not by name or date: a copy is the same source."""
    run(config)
    copy = tmp_path / "copy.csv"
    copy.write_text(REPORTS)
    assert run(replace(config, reports=str(copy))) == 0
    (tmp_path / "reports.csv").write_text(REPORTS.replace("large", "small"))
    with pytest.raises(CohortError, match="contents of reports: expected"):
        run(config)


def test_a_dry_run_writes_nothing(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """It counts as the real one does."""
    assert run(replace(config, dry_run=True)) == 0
    assert not Path(config.out).exists()
    assert "dry run" in capsys.readouterr().out


@pytest.mark.parametrize("step", ["preprocess_expression", "write_cases", "write_record"])
def test_a_killed_build_is_no_cohort_and_starts_over(
    config: BuildConfig, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step it dies at, the next run ends with what an undisturbed one would have made."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, step, die)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert not (Path(config.out) / "cohort.json").exists()
    assert run(config) == 0
    undisturbed = replace(config, out=config.out + "2")
    run(undisturbed)
    assert contents(config.out) == contents(undisturbed.out)


def test_cases_of_unknown_origin_are_not_written_over(config: BuildConfig) -> None:
    """A case table without a record may be somebody's own."""
    Path(config.out).mkdir()
    own = Path(config.out) / "cases.csv"
    own.write_text("case_id,cancer_type,slides,report,rna,split\nmine,X,,,,\n")
    with pytest.raises(CohortError, match=r"other cases, and no cohort\.json"):
        run(config)
    assert "mine" in own.read_text()


def test_a_source_is_not_written_over(config: BuildConfig) -> None:
    """Sources that have the name of an output are refused before anything is written."""
    Path(config.out).mkdir()
    own = Path(config.out) / "reports.csv"
    own.write_text(REPORTS)
    with pytest.raises(ConfigError, match=r"--reports .* would be written over"):
        run(replace(config, reports=str(own)))
    manifest = Path(config.out) / "slides.csv"
    manifest.write_text(f"path,slide_id\nx.svs,{SLIDES[0]}\ny.svs,holiday\n")
    with pytest.raises(ConfigError, match=r"--slides .* would be written over"):
        run(replace(config, slides=str(manifest)))
    assert own.read_text() == REPORTS
    assert [path.name for path in Path(config.out).iterdir() if "cohort" in path.name] == []


def test_sources_that_do_not_belong_together(config: BuildConfig, tmp_path: Path) -> None:
    """A source of which nothing is used, and ids of another kind, are errors that say so."""
    (tmp_path / "other.csv").write_text("case_id,text\nTCGA-QQ-0001,Words of somebody.\n")
    with pytest.raises(CohortError, match=r"--reports .*nothing of it.*TCGA-QQ-0001"):
        run(replace(config, reports=str(tmp_path / "other.csv")))
    (tmp_path / "plain.csv").write_text("case_id,cancer_type\nP1,BRCA\n")
    with pytest.raises(CohortError, match=r"got P1\. .*--ids plain"):
        run(replace(config, clinical=str(tmp_path / "plain.csv")))
    nothing = replace(config, slides=None, reports=None, rna=None)
    with pytest.raises(CohortError, match="no case has a slide"):
        run(nothing)
    with pytest.raises(TableError, match=r"absent\.csv: there is no such"):
        run(replace(config, clinical=str(tmp_path / "absent.csv")))
    assert not Path(config.out).exists()


def test_a_folder_with_another_record(config: BuildConfig) -> None:
    """A cohort.json that this job did not write is left alone."""
    Path(config.out).mkdir()
    record = Path(config.out) / "cohort.json"
    for text in ("[1]", "{", '{"job": "other"}'):
        record.write_text(text)
        with pytest.raises(CohortError, match=r"cohort\.json: expected"):
            run(config)
        assert record.read_text() == text


def test_settings_that_cannot_be_meant() -> None:
    """Refused before a file is read."""
    with pytest.raises(ConfigError, match="--sections"):
        BuildConfig(out="o", clinical="c", sections=("ZZ",))
    with pytest.raises(ConfigError, match="--rna-samples"):
        BuildConfig(out="o", clinical="c", rna_samples=("primary",))


def test_in_an_object_store(tmp_path: Path, s3_server: str) -> None:
    """Sources and cohort may lie in a bucket; the bytes are those of a disk."""
    from support.s3 import make_bucket

    config = write_sources(tmp_path)
    root = make_bucket("mstar-cohorts") + "/build"
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            objects.put_file(path, f"{root}/{path.relative_to(tmp_path)}")
    remote = replace(
        config,
        out=f"{root}/C",
        **{
            name: getattr(config, name).replace(str(tmp_path), root)
            for name in ("clinical", "slides", "reports", "rna")
        },
    )
    assert run(remote) == 0
    run(config)
    near, far = contents(config.out), contents(remote.out)
    same = set(near) - {"cohort.json", "slides.csv"}
    assert {n: near[n] for n in same} == {n: far[n] for n in same}
    assert run(remote) == 0
    slides = [slide.uri for slide in read_slides(f"{remote.out}/slides.csv")]
    assert len(slides) == 3
    assert all(objects.exists(uri) for uri in slides)
