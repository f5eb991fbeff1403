"""Which code this process runs: version, commit, and a digest of the package's own files.

The commit comes from git in a checkout, from `commit.txt` in a wheel (written by `hatch_build.py`)
or in a package that `mstar submit --ship-code` sent. The digest tells two copies apart that claim
the same version and commit, as after an edit; it is the same for a checkout and for its wheel.
"""

import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mstar
from mstar.errors import WorkerError

STAMP = "commit.txt"
# What a job's driver tells its workers, and a submitter its driver, to compare with.
DRIVER_CODE, SUBMITTED_CODE = "MSTAR_DRIVER_CODE", "MSTAR_SUBMITTED_CODE"
CODE_CHECK = "MSTAR_CODE_CHECK"  # `warn`: for those who edit the code while a cluster runs it
_SOURCE_SUFFIXES = (".py", ".csv")
_NOT_SOURCE = "tune_spaces"  # beside the package in a checkout, in it when installed


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVersion:
    """What identifies the code of a process.

    commit: empty when nothing says it. modified: files differ from the commit.
    source: first 12 hex digits of the sha256 of the package's files.
    """

    version: str
    commit: str
    modified: bool
    source: str

    def __str__(self) -> str:
        """`mstar 0.1.0, commit 0123abcd (modified), source 89ef…`."""
        commit = f"commit {self.commit[:12]}" if self.commit else "commit unknown"
        edited = " (modified)" if self.modified else ""
        return f"mstar {self.version}, {commit}{edited}, source {self.source}"

    def to_json(self) -> str:
        """As text that fits an environment variable."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "CodeVersion":
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    def agrees_with(self, other: "CodeVersion") -> bool:
        """Same version, same files, and the same commit where both know theirs."""
        commits = {self.commit, other.commit} - {""}
        same = (self.version, self.source) == (other.version, other.source)
        return same and len(commits) <= 1


@functools.cache
def this_code() -> CodeVersion:
    """The code of this process."""
    commit, modified = _commit(Path(mstar.__file__).parent)
    source = source_digest(Path(mstar.__file__).parent)
    return CodeVersion(version=mstar.__version__, commit=commit, modified=modified, source=source)


def source_digest(package: Path) -> str:
    """One digest of all the files that are the code, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*"), key=lambda path: path.relative_to(package).as_posix()):
        name = path.relative_to(package).as_posix()
        if path.suffix in _SOURCE_SUFFIXES and not name.startswith(f"{_NOT_SOURCE}/"):
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def check_submitted_code() -> CodeVersion | None:
    """In a job that `mstar submit` sent: this code, once it is known to be the submitter's.

    Raises:
        WorkerError: the cluster runs other code than the one that checked the command line.
    """
    if SUBMITTED_CODE not in os.environ:
        return None
    submitted, here = CodeVersion.from_json(os.environ[SUBMITTED_CODE]), this_code()
    # The commit may differ where the files do not: a later one that touched only documents.
    if not here.agrees_with(replace(submitted, commit="")) and not only_warns():
        raise WorkerError(
            f"the cluster runs other code than was submitted: expected {submitted}, got {here} in "
            f"{Path(mstar.__file__).parent}. Install the same wheel on both sides, or submit with "
            "--ship-code"
        )
    return here


def check_worker() -> None:
    """Called by Ray at the start of every worker process: says its code.

    What a worker prints lies in its own log, which the dashboard shows. Nothing is refused here:
    Ray starts a worker that ends in this call again, and again, for ever.
    """
    print(f"worker: {this_code()}", file=sys.stderr, flush=True)


def refuse_other_code() -> None:
    """Called where work begins in a worker, so that the error reaches the driver and ends the job.

    Raises:
        WorkerError: this process runs other code than the driver.
    """
    if DRIVER_CODE not in os.environ:  # a Ray of the driver's own
        return
    expected, here = CodeVersion.from_json(os.environ[DRIVER_CODE]), this_code()
    if not (here.agrees_with(expected) or only_warns()):
        raise WorkerError(
            f"a worker on {socket.gethostname()} runs other code than the driver: expected "
            f"{expected}, got {here}. Install the same wheel on every node, or submit with "
            "--ship-code"
        )


def only_warns() -> bool:
    """Whether a difference is said, but not refused."""
    return os.environ.get(CODE_CHECK) == "warn"


def _commit(package: Path) -> tuple[str, bool]:
    """The commit and whether files were changed since; from the stamp, git, or MSTAR_GIT_COMMIT.

    An environment inside somebody else's repository must not report that one's commit.
    """
    stamp = package / STAMP
    if stamp.exists():
        commit, _, modified = stamp.read_text().strip().partition(" ")
        return commit, bool(modified)
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top or package.resolve() != Path(top).resolve() / "platform" / "mstar":
        return os.environ.get("MSTAR_GIT_COMMIT", ""), False
    changed = _git(package, "status", "--porcelain", "--untracked-files=no")
    return _git(package, "rev-parse", "--verify", "--quiet", "HEAD"), bool(changed)


def _git(folder: Path, *arguments: str) -> str:
    """What a git command prints, empty when it fails or git is not there."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
