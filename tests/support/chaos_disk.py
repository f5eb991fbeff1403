"""A disk that is full: a small tmpfs of its own, in a mount namespace that jobs are run in.

with SmallDisk(megabytes=2) as disk:
    subprocess.run([*disk.enter, …])     # sees the disk at disk.path
    disk.seen_from_outside               # the same folder for everybody else
    disk.resize(megabytes=64)
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo ready && exec sleep 3600'


class SmallDisk:
    """A tmpfs that holds `megabytes`, as long as the block runs."""

    def __init__(self, *, megabytes: float) -> None:
        """Raises OSError where user namespaces may not be had."""
        self._folder = tempfile.TemporaryDirectory(prefix="mstar-disk-")
        self.path = Path(self._folder.name)
        size = str(int(megabytes * 2**20))
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh"]
        self._holder = subprocess.Popen(
            [*command, size, str(self.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            self._holder.wait()
            self._folder.cleanup()
            raise OSError("no small disk: user namespaces with mounts are not allowed here")

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.communicate()
        self._folder.cleanup()

    @property
    def enter(self) -> list[str]:
        """What a command is prefixed with to see the disk."""
        return [
            *("nsenter", "--target", str(self._holder.pid)),
            *("--user", "--mount", "--preserve-credentials", "--wd=/"),
        ]

    @property
    def seen_from_outside(self) -> Path:
        """The disk's folder for processes outside the namespace."""
        return Path(f"/proc/{self._holder.pid}/root{self.path}")

    def resize(self, *, megabytes: float) -> None:
        """Give it more room, as somebody who deletes other files would."""
        option = f"remount,size={int(megabytes * 2**20)}"
        subprocess.run([*self.enter, "mount", "-o", option, str(self.path)], check=True)
