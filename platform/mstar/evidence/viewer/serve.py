"""The page and its tiles on 127.0.0.1, for whoever knows the address.

The address holds a random token. Nothing of a request is ever used as a path: it is one of the
page's own file names, or three numbers that name a tile.
"""

import re
import secrets
import socket
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mstar.errors import ConfigError
from mstar.evidence.viewer.page import INDEX, POLICY, TILES, TYPES
from mstar.evidence.viewer.tiles import TileMaker

HOST = "127.0.0.1"
_TILE = re.compile(rf"{TILES}/(\d{{1,2}})/(\d{{1,7}})_(\d{{1,7}})\.jpg")
_IDLE_S = 60
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", f"{POLICY.replace(' file:', '')}; frame-ancestors 'none'"),
)


class ViewServer(ThreadingHTTPServer):
    """Serves one slide."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, files: Mapping[str, bytes], tiles: TileMaker, port: int = 0, token: str = ""
    ) -> None:
        """Binds the port.

        Raises:
            ConfigError: it is taken.
        """
        self.files, self.tiles = dict(files), tiles
        self.token = token or secrets.token_urlsafe(18)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"--port {port}: {error.strerror}. Give another one, or 0 for a free one."
            ) from error

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def answer(self, path: str) -> tuple[bytes, str] | None:
        """Body and media type of what a path names; None: nothing does."""
        given, slash, name = path.removeprefix("/").partition("/")
        if not slash or not secrets.compare_digest(given.encode(), self.token.encode()):
            return None
        name = name or INDEX
        if name in self.files:
            return self.files[name], TYPES[name[name.rindex(".") :]]
        if match := _TILE.fullmatch(name):
            level, column, row = map(int, match.groups())
            tile = self.tiles.tile(level, column, row)
            return (tile, "image/jpeg") if tile is not None else None
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD; all else is refused by the base class."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mstar", ""
    timeout = _IDLE_S
    server: ViewServer

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the address holds the token."""

    def _respond(self, *, with_body: bool) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        found = None
        if host in (HOST, "localhost"):  # no other name that someone made point here
            found = self.server.answer(self.path.partition("?")[0])
        body, kind = found or (b"not here\n", "text/plain; charset=utf-8")
        self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        tile = kind == "image/jpeg"
        self.send_header("Cache-Control", "private, max-age=3600" if tile else "no-store")
        for name, value in _HEADERS:
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)
