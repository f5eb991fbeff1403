"""Write requirements.lock: what a fresh environment resolves pyproject.toml to, exact versions.

Local versions (`+cpu`) and CUDA packages are left out, so that the same lock gives the torch build
that fits the machine; addresses never enter it.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLATFORM_SPECIFIC = re.compile(r"^(nvidia-|cuda-|triton\b)")


def main() -> None:
    """Resolve in a scratch environment and freeze it."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "torch==2.13.0", f"{ROOT}[test,dev]"], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True)
    (ROOT / "requirements.lock").write_text(to_lock(frozen.stdout))


def to_lock(frozen: str) -> str:
    """The lock of a `pip freeze`."""
    head = "# Made by `make lock` from pyproject.toml, with all extras. Do not edit.\n"
    lines = (re.sub(r"\+\w+$", "", line) for line in frozen.splitlines())
    kept = [line for line in lines if "==" in line and not PLATFORM_SPECIFIC.match(line)]
    return head + "\n".join(sorted(kept, key=str.lower)) + "\n"


if __name__ == "__main__":
    main()
