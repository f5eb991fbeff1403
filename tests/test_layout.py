"""The repository's shape: what would break silently if someone moved or added a file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_platform_is_no_package() -> None:
    """`platform/__init__.py` would hide Python's own `platform` module."""
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_standard_platform_module_is_found_from_the_root() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip()


@pytest.mark.parametrize("script", sorted((ROOT / "jobs").glob("*.py")), ids=lambda p: p.name)
def test_job_names_hide_no_module(script: Path) -> None:
    """A job's folder comes early on sys.path: jobs/ray.py would hide Ray."""
    assert script.stem not in sys.stdlib_module_names
    installed = {line.split("==")[0] for line in lock_lines()}
    assert script.stem not in installed


def test_lock_is_exact_and_portable() -> None:
    """Exact versions, no local builds, no CUDA packages, no addresses."""
    for line in lock_lines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!_-]+", line), line
        assert not line.lower().startswith(("nvidia-", "cuda-", "triton")), line


def test_every_dependency_is_locked_and_earns_its_line() -> None:
    """Each dependency in pyproject.toml is locked; each of `dependencies` says why it is there."""
    locked = {line.split("==")[0].lower().replace("_", "-") for line in lock_lines()}
    text = (ROOT / "pyproject.toml").read_text()
    lines = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.S | re.M)
    assert lines is not None
    for line in lines[1].splitlines():
        match = re.match(r'\s*"([A-Za-z0-9-]+)[^"]*",\s*# \S', line)
        assert match, f"no reason given: {line}"
        assert match[1].lower() in locked


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
