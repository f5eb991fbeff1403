"""Writes the commit into the wheel, as `mstar/commit.txt`: an installed package has no git to ask.

In an editable install the package lies in its checkout, and asks git itself. Where there is no git
to ask (an image built from an archive), MSTAR_GIT_COMMIT says it.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STAMP = "commit.txt"


class CommitHook(BuildHookInterface):
    """Adds the stamp to a wheel or a source archive."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files."""
        stamped = Path(self.root) / "platform" / "mstar" / STAMP
        if version == "editable" or stamped.exists():  # unpacked from a source archive: it has one
            return
        text = commit_of(Path(self.root))
        if not text:
            return
        made = Path(self.directory) / STAMP
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text + "\n")
        inside = "mstar" if self.target_name == "wheel" else "platform/mstar"
        build_data["force_include"][str(made)] = f"{inside}/{STAMP}"


def commit_of(root: Path) -> str:
    """The commit of a checkout, with ` modified` behind it when files of it were changed."""
    commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit or not (root / ".git").exists():
        return os.environ.get("MSTAR_GIT_COMMIT", "")
    modified = git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} modified" if modified else commit


def git(folder: Path, *arguments: str) -> str:
    """What git prints, empty when it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
