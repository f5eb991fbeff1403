"""Footers of shards: where each row group lies. Fetched once, and kept within a number of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mstar.data.shards.faults import BrokenShardError
from mstar.data.shards.row_groups import parse
from mstar.storage import objects

GUESS_BYTES = 64 << 10  # holds the footer of some 170 row groups
CACHE_BYTES = 256 << 20  # holds those of 2 TB of shards
_TAIL_BYTES = 8  # length of the footer and the magic word


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """The last bytes of a shard, and the tag of the file they are of.

    They are kept as they are: parsed ones take several times as much memory.
    """

    data: bytes
    tag: str

    def metadata(self) -> pq.FileMetaData:
        """What they say.

        Raises:
            BrokenShardError: they are no footer.
        """
        return parse(lambda: pq.read_metadata(pa.BufferReader(self.data)))


class FooterCache:
    """The footers used last, by address; threads may share it."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._footers: OrderedDict[str, Footer] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def get(self, uri: str, fetch: Callable[[], Footer]) -> Footer:
        """The footer of a shard, fetched where it is not held."""
        with self._lock:
            if uri in self._footers:
                self._footers.move_to_end(uri)
                return self._footers[uri]
        footer = fetch()
        with self._lock:
            if uri not in self._footers:  # another thread may have been faster
                self._footers[uri] = footer
                self._held_bytes += len(footer.data)
            while self._held_bytes > CACHE_BYTES and len(self._footers) > 1:
                self._held_bytes -= len(self._footers.popitem(last=False)[1].data)
        return footer


def fetch_footer(uri: str, num_bytes: int) -> Footer:
    """The footer of a shard of known size, in one request where it is of usual size.

    Raises:
        BrokenShardError: the shard has another size, or does not end as a Parquet file does.
        FileNotFoundError: there is none.
        StorageError: storage is away, or refuses.
    """
    found = objects.stat(uri)
    if found is None:
        raise FileNotFoundError(uri)
    if found.size_bytes != num_bytes:
        raise BrokenShardError(f"expected {num_bytes} bytes, got {found.size_bytes}")
    data = objects.read_range(uri, max(0, num_bytes - GUESS_BYTES), num_bytes, tag=found.tag)
    needed = int.from_bytes(data[-_TAIL_BYTES:-4], "little") + _TAIL_BYTES
    if needed > num_bytes:
        raise BrokenShardError("it does not end as a Parquet file does")
    if needed > len(data):
        data = objects.read_range(uri, num_bytes - needed, num_bytes, tag=found.tag)
    return Footer(data=data[-needed:], tag=found.tag)
