"""What all files that are read at any place have in common: a position."""

import io
import os


class SeekableReader(io.RawIOBase):
    """A file of known size with a position; those who inherit read from `at` and move it."""

    def __init__(self, size_bytes: int) -> None:
        """Stand at the start."""
        self.size_bytes, self.at = size_bytes, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, as in any file."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size_bytes}
        self.at = max(0, origin[whence] + offset)
        return self.at
