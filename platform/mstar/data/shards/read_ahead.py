"""Pieces read ahead by threads of this process, in order, as far as a number of bytes allows."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from mstar.data.shards.pieces import PieceRows, PieceTable
from mstar.data.shards.reader import ShardReader


class ReadAhead:
    """Iterates over pieces in the order of their table; `close` ends the threads."""

    def __init__(
        self, reader: ShardReader, pieces: PieceTable, *, ahead_bytes: int, threads: int
    ) -> None:
        """Read nothing yet.

        Args:
            reader: shared by the threads.
            pieces: what to read.
            ahead_bytes: how much may be read, or be being read, and not yet taken. One piece is
                always allowed.
            threads: how many pieces are read at once.
        """
        assert ahead_bytes > 0
        assert threads > 0
        self._reader, self._pieces, self._ahead_bytes = reader, pieces, ahead_bytes
        self._pool = ThreadPoolExecutor(threads, "read-ahead")
        self._pending: deque[tuple[int, Future[PieceRows]]] = deque()
        self.held_bytes = 0
        self.most_held_bytes = 0

    def __iter__(self) -> Iterator[PieceRows]:
        """The pieces; once."""
        number = 0
        while number < len(self._pieces) or self._pending:
            while number < len(self._pieces) and self._has_room(number):
                self._submit(number)
                number += 1
            size, future = self._pending.popleft()
            found = future.result()
            self.held_bytes -= size
            yield found

    def close(self) -> None:
        """Drop what has not been taken; whoever waits for a piece gets CancelledError."""
        self._reader.give_up()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _has_room(self, number: int) -> bool:
        size = self._pieces.size_bytes(number)
        return not self._pending or self.held_bytes + size <= self._ahead_bytes

    def _submit(self, number: int) -> None:
        size = self._pieces.size_bytes(number)
        self.held_bytes += size
        self.most_held_bytes = max(self.most_held_bytes, self.held_bytes)
        self._pending.append((size, self._pool.submit(self._reader.read, self._pieces[number])))
