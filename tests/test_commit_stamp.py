"""The wheel says which commit it was built from, and is the same code as the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mstar.training.code_version import STAMP, source_digest, this_code

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_wheel_is_stamped(tmp_path: Path) -> None:
    """Needs the index, for hatchling; and a git checkout."""
    if "build.hooks.custom" not in (ROOT / "pyproject.toml").read_text():
        pytest.skip("pyproject.toml does not name hatch_build.py yet")
    if not this_code().commit:
        pytest.skip("not a git checkout: there is no commit to stamp")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir"]
    subprocess.run([*pip, str(tmp_path), str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    package = tmp_path / "unpacked" / "mstar"
    assert (package / STAMP).read_text().split()[0] == this_code().commit
    assert source_digest(package) == this_code().source
