"""The model hub, played by a small server on this machine: download, pin, access, no network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"weights" * 1000
REPOS = {
    "lab/usual": ["config.json", "pytorch_model.bin"],
    "lab/odd": ["README.md", "odd.pth"],
    "lab/two": ["a.pth", "b.pth"],
}


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download uses."""

    tokens: set[str] = set()  # noqa: RUF012

    def do_HEAD(self) -> None:
        """Metadata of one file."""
        self._file(send_body=False)

    def do_GET(self) -> None:
        """One file, or the listing of a model."""
        if self.path.startswith("/api/models/"):
            self._listing()
        elif "/resolve/" not in self.path:  # the library asks about itself
            self._answer(404, {}, b"")
        else:
            self._file(send_body=True)

    def _listing(self) -> None:
        repo = "/".join(self.path.split("?")[0].split("/")[3:5])
        tree = [{"type": "file", "path": n, "size": 1, "oid": "0"} for n in REPOS[repo]]
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())

    def _file(self, *, send_body: bool) -> None:
        FakeHub.tokens.add(self.headers.get("Authorization", ""))
        owner, name, _, _, file = self.path.split("?")[0].split("/")[1:6]
        repo = f"{owner}/{name}"
        if repo == "lab/gated":
            self._answer(403, {"X-Error-Code": "GatedRepo"}, b"")
        elif repo not in REPOS:
            self._answer(404, {"X-Error-Code": "RepoNotFound"}, b"")
        elif file not in REPOS[repo]:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"")
        else:
            tag = hashlib.sha256(CONTENT).hexdigest()
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
            self._answer(200, headers, CONTENT, send_body=send_body)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, *, send_body: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the console."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """Address of a fake hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def resolve_in_fresh_process(home: Path, *weights: str, **environment: str) -> str:
    """What `resolve` gives or says of each, in a process whose hub is set by its environment."""
    code = (
        "import logging; logging.basicConfig(level='WARNING')\n"
        "from mstar.errors import WeightsError\n"
        "from mstar.models.encoder_table import find_encoder\n"
        "from mstar.models.weights import resolve\n"
        f"for weights in {weights!r}:\n"
        "    try:\n"
        "        print(resolve(weights, find_encoder('vit_tiny')))\n"
        "    except WeightsError as error:\n"
        "        print('WeightsError', error)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def test_weights_are_downloaded_pinned_and_kept_for_offline(hub: str, tmp_path: Path) -> None:
    files = {"lab/usual": "pytorch_model.bin", "lab/odd": "odd.pth"}
    weights = [f"hf-hub:{repo}" for repo in files]
    online = resolve_in_fresh_process(tmp_path, *weights, HF_ENDPOINT=hub)
    assert online.count(hashlib.sha256(CONTENT).hexdigest()) == 2
    for repo, file in files.items():
        assert f"uri='hf-hub:{repo}@{COMMIT}'" in online
        assert f"{COMMIT}/{file}" in online
        assert f"looking up hf-hub:{repo} on the model hub" in online  # never by surprise

    pinned = [f"{uri}@{COMMIT}" for uri in weights]
    offline = resolve_in_fresh_process(tmp_path, *weights, *pinned, HF_HUB_OFFLINE="1")
    assert offline.count(hashlib.sha256(CONTENT).hexdigest()) == 4


def test_the_token_is_sent_and_never_shown(hub: str, tmp_path: Path) -> None:
    FakeHub.tokens.clear()
    resolve_in_fresh_process(tmp_path, "hf-hub:lab/usual", HF_ENDPOINT=hub, HF_TOKEN="secret-7")
    assert "Bearer secret-7" in FakeHub.tokens


def test_what_cannot_be_had_says_what_to_do(hub: str, tmp_path: Path) -> None:
    advice = {
        "hf-hub:lab/gated": "Accept the terms at https://huggingface.co/lab/gated",
        "hf-hub:lab/nowhere": "no such model or revision",
        "hf-hub:not a name": "no such model or revision",
        "hf-hub:lab/two": "Name one file of: a.pth, b.pth",
    }
    said = resolve_in_fresh_process(tmp_path, *advice, HF_ENDPOINT=hub, HF_TOKEN="secret-7")
    errors = [line for line in said.splitlines() if line.startswith("WeightsError")]
    assert len(errors) == len(advice)
    for error, (weights, says) in zip(errors, advice.items(), strict=True):
        assert error.startswith(f"WeightsError {weights}: ")
        assert says in error


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_OFFLINE": "1"},
        # the hub's library tries for some 20 s before it gives up
        pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, marks=pytest.mark.slow),
    ],
)
def test_without_a_network_the_message_says_how_to_bring_the_file(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    said = resolve_in_fresh_process(tmp_path, "hf-hub:lab/usual", **environment)
    assert "WeightsError hf-hub:lab/usual: the hub cannot be reached" in said
    assert "--weights /path or s3://bucket/file" in said
