"""A TCP proxy whose line can be made bad: cut, slow, late, or answering HTTP errors by itself.

    with ChaosProxy("127.0.0.1:8333") as proxy:
        with proxy.bad("cut"):
            …                    # every connection is refused, those that were open are gone
        proxy.met["cut"]         # how often somebody ran into it

It knows no S3: what it forwards are bytes, so it stands before Ray's head as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Literal, get_args
from urllib.parse import urlsplit

Fault = Literal["", "cut", "503", "expired", "slow", "late"]

PIECE_BYTES = 16_384
SLOW_BYTES_PER_S = 400_000.0
LATE_S = 0.5
_LEFT_OPEN_S = 0.2  # a client that is still sending its request is heard out so long
_ANSWERS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
}

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ChaosProxy:
    """Forwards connections to `target`, `host:port` or an URL, as well as the fault allows."""

    def __init__(self, target: str) -> None:
        """Start on a free port of 127.0.0.1."""
        where = urlsplit(target if "://" in target else f"tcp://{target}")
        assert where.hostname is not None
        assert where.port is not None
        self._target = where.hostname, where.port
        self.met: Counter[str] = Counter()
        self._fault: Fault = ""
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        )
        self._server = started.result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.endpoint = f"http://{self.address}"

    def __enter__(self) -> ChaosProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self.set_fault("cut")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def set_fault(self, fault: Fault) -> None:
        """From now on; empty ends it. All but `slow` and `late` drop what is under way."""
        assert fault in get_args(Fault), fault
        changed = threading.Event()

        def change() -> None:
            self._fault = fault
            if fault == "cut" or fault in _ANSWERS:
                self.met[fault] += len(self._open)
                for writer in self._open:
                    writer.transport.abort()
            changed.set()

        self._loop.call_soon_threadsafe(change)
        changed.wait(10)

    @contextlib.contextmanager
    def bad(self, fault: Fault) -> Iterator[None]:
        """The fault for as long as the block runs."""
        self.set_fault(fault)
        try:
            yield
        finally:
            self.set_fault("")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault == "cut":
            self.met["cut"] += 1
            writer.transport.abort()
            return
        if self._fault in _ANSWERS:
            self.met[self._fault] += 1
            with contextlib.suppress(OSError):
                await _refuse(reader, writer, *_ANSWERS[self._fault])
            return
        try:
            upstream = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        await self._forward((reader, writer), upstream)

    async def _forward(self, client: Connection, upstream: Connection) -> None:
        both = (client[1], upstream[1])
        self._open.update(both)
        try:
            await asyncio.gather(
                self._pump(client[0], upstream[1]), self._pump(upstream[0], client[1])
            )
        finally:
            self._open.difference_update(both)
            for writer in both:
                writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(PIECE_BYTES):
                await self._delay(len(piece))
                sink.write(piece)
                await sink.drain()
            sink.write_eof()

    async def _delay(self, num_bytes: int) -> None:
        if self._fault not in ("slow", "late"):
            return
        self.met[self._fault] += 1
        await asyncio.sleep(LATE_S if self._fault == "late" else num_bytes / SLOW_BYTES_PER_S)


class ProxyProcess:
    """The same in a process of its own, for callers that hold the interpreter while they wait."""

    def __init__(self, target: str) -> None:
        """Start it."""
        command = [sys.executable, __file__, target]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.address = self._answer()

    def set_fault(self, fault: Fault) -> int:
        """As in `ChaosProxy`; returns how often somebody has run into the fault so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{fault}\n")
        return int(self._answer())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def _serve_commands(target: str) -> None:
    """A fault a line on stdin; the count of those met so far, all kinds, a line on stdout."""
    proxy = ChaosProxy(target)
    print(proxy.address, flush=True)
    for line in sys.stdin:
        fault = line.strip()
        assert fault in get_args(Fault), fault
        proxy.set_fault(fault)  # type: ignore[arg-type]
        print(proxy.met.total(), flush=True)


async def _refuse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int, code: str, said: str
) -> None:
    """Hear a request out and answer it as an S3 server in trouble does; the connection ends."""
    with contextlib.suppress(TimeoutError):
        while await asyncio.wait_for(reader.read(1 << 20), _LEFT_OPEN_S):
            pass
    body = f"<Error><Code>{code}</Code><Message>{said}</Message></Error>"
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write((head + body).encode())
    await writer.drain()
    writer.close()


if __name__ == "__main__":
    _serve_commands(sys.argv[1])
