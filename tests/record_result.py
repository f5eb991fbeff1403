"""Called by `make test-all`: writes date, commit and result into platform/docs/acceptance.md."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ACCEPTANCE = ROOT / "platform" / "docs" / "acceptance.md"
LINE = re.compile(r"^Last `make test-all`:.*$", re.M)


def main(code: int) -> None:
    """Replace the line that says when all tests last ran, and how that ended."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "no commit"
    day = datetime.now(UTC).date().isoformat()
    result = "passed" if code == 0 else f"failed (pytest exit code {code})"
    text = ACCEPTANCE.read_text(encoding="utf-8")
    text = LINE.sub(f"Last `make test-all`: {day}, commit {commit}, {result}.", text)
    ACCEPTANCE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]))
