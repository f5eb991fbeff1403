"""The command line: recipes and flags to a config, refusals, exit codes, and a fast --help."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import pytest
import tyro

from mstar.cli import main as main_module
from mstar.cli.job_table import JOBS, Job, named, parts_of
from mstar.cli.main import main
from mstar.cli.resolve import JobParts, known_flags, resolve
from mstar.errors import (
    ConfigError,
    InterruptedRunError,
    ManifestError,
    MstarError,
    StorageError,
    WeightsError,
)
from mstar.training.exit_codes import check_max_failures


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSample:
    """A nested config whose flags are the outer one's."""

    target_mpp: float = 0.5
    """Resolution wanted, in microns per pixel."""
    grid_mode: Literal["exact", "prepath"] = "exact"
    """How pixels are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueSample:
    """A nested config with flags of its own."""

    min_area_um2: float = 100.0
    """Smallest tissue, in square microns."""
    white: bool = True
    """Leave white patches out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSample:
    """A config with a field that is given by its place."""

    cohort: tyro.conf.Positional[str]
    """A folder."""
    seed: int = 0
    """Of the draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A config as the jobs have them."""

    slides: str
    """Slides to read."""
    from_: Annotated[str, tyro.conf.arg(name="from")] = "here"
    """A flag that is a Python keyword."""
    weights: str | None = None
    """Weights, local or s3://."""
    max_failures: str = "0"
    """Slides that may fail."""
    retry_failed: bool = False
    """Try failed slides again."""
    grid: Annotated[GridSample, tyro.conf.arg(name="")] = field(default_factory=GridSample)
    tissue: TissueSample = field(default_factory=TissueSample)

    def __post_init__(self) -> None:
        check_max_failures(self.max_failures)


def plain() -> Sample:
    """Nothing special."""
    return Sample(slides=tyro.MISSING)


def coarse() -> Sample:
    """A quarter of the patches."""
    return replace(plain(), grid=GridSample(target_mpp=1.0), retry_failed=True)


PARTS = JobParts(recipes={"plain": plain, "coarse": coarse}, default="plain")


def sample(*argv: str) -> Sample:
    """The config of a command line."""
    config = resolve("sample", argv, PARTS, summary="A sample job.")
    assert isinstance(config, Sample)
    return config


def test_a_recipe_fills_in_and_flags_override() -> None:
    assert sample("--slides", "s") == Sample(slides="s")
    found = sample("coarse", "--slides", "s", "--grid-mode", "prepath", "--tissue.min-area-um2=7")
    assert found == Sample(
        slides="s",
        retry_failed=True,
        grid=GridSample(target_mpp=1.0, grid_mode="prepath"),
        tissue=TissueSample(min_area_um2=7.0),
    )
    assert sample("coarse", "--slides", "s", "--target-mpp", "2").grid.target_mpp == 2.0
    assert not sample("coarse", "--slides", "s", "--no-retry-failed").retry_failed
    assert sample("--slides", "s", "--from", "there").from_ == "there"
    assert sample("--slides", "s", "--target_mpp", "2").grid.target_mpp == 2.0


def test_help_shows_every_field_with_its_meaning_unit_and_default_and_the_recipes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        sample("coarse", "--help")
    assert ended.value.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "--target-mpp FLOAT Resolution wanted, in microns per pixel. (default: 1.0)" in text
    assert "--tissue.min-area-um2 FLOAT Smallest tissue, in square microns." in text
    assert "--slides STR Slides to read. (required)" in text
    assert "plain: Nothing special. (default)" in text
    assert "coarse: A quarter of the patches." in text
    shown = {flag for flag in re.findall(r"(?<![\w/])--[a-z][\w.-]*", text) if flag != "--flag"}
    ours = set(known_flags(Sample)) | {"--help"}
    assert shown <= ours
    switched = {
        flag.replace("no-", "") for flag in shown
    }  # a switch that is on shows how to end it
    assert {flag for flag in ours if "no-" not in flag} == switched


@pytest.mark.parametrize(
    ("argv", "nearest"),
    [
        (["--slidse", "s"], "--slides"),
        (["--slides", "s", "--taget-mpp", "3"], "--target-mpp"),
        (["--slides", "s", "--target-mp=3"], "--target-mpp"),
        (["--slides", "s", "--min-area"], "--tissue.min-area-um2"),
        (["corse", "--slides", "s"], "coarse"),
    ],
)
def test_unknown_flags_and_recipes_are_refused_with_the_nearest(
    argv: list[str], nearest: str
) -> None:
    with pytest.raises(ConfigError, match=rf"nearest: (\S+, )*{re.escape(nearest)}[,;]"):
        sample(*argv)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--slides", "s", "--target-mpp", "wide"],
        ["--slides", "s", "--grid-mode", "exat"],
        ["--slides"],
        ["--slides", "s", "left over"],
    ],
)
def test_missing_and_wrong_values_end_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sample(*argv)
    assert ended.value.code == 2


def test_a_wrong_value_of_ours_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="--max-failures"):
        sample("--slides", "s", "--max-failures", "many")


def test_a_job_without_recipes_takes_none() -> None:
    parts = JobParts(config=Sample)
    assert resolve("sample", ["--slides", "s"], parts) == Sample(slides="s")
    with pytest.raises(ConfigError, match="takes no recipe"):
        resolve("sample", ["plain", "--slides", "s"], parts)


def raising(error: BaseException) -> Callable[[Any], int]:
    """A job that fails."""

    def run(config: Any) -> int:
        raise error

    return run


def call(run: Callable[[Any], int], argv: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of `mstar sample` with this run function."""
    monkeypatch.setattr(main_module, "parts_of", lambda job: PARTS)
    monkeypatch.setattr(main_module, "named", lambda name: run)
    job = Job(summary="A sample job.", run="sample:run")
    monkeypatch.setitem(main_module.JOBS, "sample", job)
    before = signal.getsignal(signal.SIGTERM)
    try:
        return main(["sample", *argv])
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MstarError("it broke"), 1),
        (StorageError("it broke"), 1),
        (WeightsError("it broke"), 1),
        (ConfigError("it broke"), 2),
        (ManifestError("it broke"), 2),
        (InterruptedRunError("it broke"), 130),
        (KeyboardInterrupt("it broke"), 130),
    ],
)
def test_errors_end_with_their_code_and_one_line(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(raising(error), ["--slides", "s"], monkeypatch) == code
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("mstar: ")
    assert line.endswith("it broke")
    assert captured.out == ""


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        call(raising(ZeroDivisionError()), ["--slides", "s"], monkeypatch)


def test_the_jobs_own_code_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(lambda _: 3, ["--slides", "s"], monkeypatch) == 3


def test_sigterm_interrupts_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: Any) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        return 0

    assert call(run, ["--slides", "s"], monkeypatch) == 130


def test_an_unknown_job_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embeds"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'embed'?" in error
    assert all(job in error for job in JOBS)
    assert main([]) == 2


def test_the_help_of_the_program_is_fast_and_loads_neither_ray_nor_torch() -> None:
    code = (
        "import sys; from mstar.cli.main import main; code = main(['--help'])\n"
        "print(sorted({'ray', 'torch', 'mlflow', 'numpy', 'pyarrow'} & set(sys.modules)), code)"
    )
    began_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - began_s < 5  # a second on an idle machine
    assert done.stdout.splitlines()[-1] == "[] 0"
    for name, job in JOBS.items():
        assert f"  {name}" in done.stdout
        assert job.summary in done.stdout


@pytest.mark.parametrize("job", list(JOBS.values()), ids=list(JOBS))
def test_every_job_names_a_function_that_exists(job: Job) -> None:
    assert callable(named(job.run))


def test_a_group_of_jobs_names_its_members(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cohort", "chek"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in JOBS if name.startswith("cohort "))


def test_what_is_given_by_its_place_is_no_flag() -> None:
    parts = JobParts(config=PlaceSample)
    for argv in (["here", "--seed", "2"], ["--seed", "2", "here"]):
        assert resolve("sample", argv, parts) == PlaceSample(cohort="here", seed=2)
    with pytest.raises(ConfigError, match="--cohort"):
        resolve("sample", ["--cohort", "here"], parts)


@pytest.mark.parametrize("job", list(JOBS))
def test_every_job_explains_itself(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    parts = parts_of(JOBS[job])
    with pytest.raises(SystemExit) as ended:
        resolve(job, ["--help"], parts, summary=JOBS[job].summary)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert JOBS[job].summary in text
    config_class = parts.config or type(parts.recipes[parts.default]())
    shown = {flag.replace("no-", "") for flag in re.findall(r"--[a-z][\w.-]*", text)}
    assert {flag for flag in known_flags(config_class) if "no-" not in flag} <= shown
    for name in parts.recipes:
        assert f"  {name}: " in text
