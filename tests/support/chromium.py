"""Drives a headless Chromium by its DevTools protocol over two pipes: no port, no other package.

The browser is MSTAR_CHROMIUM, else one on the PATH, else one that Playwright or Puppeteer fetched.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
         "chrome-headless-shell")  # fmt: skip
CACHES = (
    ".cache/ms-playwright/chromium*/chrome-linux*/*",
    ".cache/puppeteer/chrome*/*/chrome*/chrome*",
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--no-default-browser-check", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--mute-audio", "--disable-dev-shm-usage",
    "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip
WAIT_S = 30.0


def find_chromium() -> str | None:
    """The browser's program, or none."""
    if named := os.environ.get("MSTAR_CHROMIUM"):
        return named
    for name in NAMES:
        if found := shutil.which(name):
            return found
    for pattern in CACHES:
        for path in sorted(Path.home().glob(pattern), reverse=True):
            if path.name in (*NAMES, "headless_shell") and os.access(path, os.X_OK):
                return str(path)
    return None


@dataclass
class Page:
    """One page of a browser. Keeps what went wrong on it, and what it asked for.

    problems: console errors and warnings, exceptions, log entries. requests: addresses.
    """

    pipe: Pipe
    session: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """One command of the protocol."""
        return self.pipe.call(method, fields, self.session)

    def open(self, url: str, *, width: int = 1200, height: int = 800, dense: float = 1) -> None:
        """Goes to an address and waits until the page has loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=dense, mobile=False)  # fmt: skip
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True,
                          awaitPromise=True, timeout=WAIT_S * 1000)  # fmt: skip
        if "exceptionDetails" in found:
            raise AssertionError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Waits for an expression to be true."""
        until = time.monotonic() + WAIT_S
        while not self.run(condition):
            assert time.monotonic() < until, f"not within {WAIT_S:g} s: {condition}"
            time.sleep(0.02)

    def mouse(self, kind: str, x: float, y: float, **fields: Any) -> None:
        """A movement or button of the mouse."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **fields)

    def click(self, x: float, y: float) -> None:
        """A click of the left button."""
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, button="left", clickCount=1)
        self.mouse("mouseReleased", x, y, button="left", clickCount=1)

    def drag(self, x: float, y: float, dx: float, dy: float) -> None:
        """A drag with the left button, held at the end so that nothing is thrown."""
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, button="left", clickCount=1)
        for step in range(1, 6):
            self.mouse("mouseMoved", x + dx * step / 5, y + dy * step / 5, button="left")
        time.sleep(0.15)
        self.mouse("mouseMoved", x + dx, y + dy, button="left")
        self.mouse("mouseReleased", x + dx, y + dy, button="left", clickCount=1)

    def key(self, key: str) -> None:
        """Presses and releases a key that writes a character."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def screenshot(self, path: str | Path = "") -> np.ndarray:
        """What is seen, RGB."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path:
            Path(path).write_bytes(data)
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    def heard(self, message: dict[str, Any]) -> None:
        """Takes note of an event."""
        method, told = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Network.loadingFailed":
            self.problems.append(f"request failed: {told['errorText']}")
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.problems.append(json.dumps(told["args"])[:500])
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")


class Pipe:
    """Commands to the browser and what comes back, JSON ended by a zero byte."""

    def __init__(self, process: subprocess.Popen[bytes], write_fd: int, read_fd: int) -> None:
        self.process, self._write, self._read = process, write_fd, read_fd
        self._number, self._rest = 0, b""
        self.pages: dict[str, Page] = {}

    def call(self, method: str, fields: dict[str, Any], session: str = "") -> dict[str, Any]:
        """Sends a command and waits for its answer; events meanwhile go to their pages."""
        self._number += 1
        sent = {"id": self._number, "method": method, "params": fields}
        data = json.dumps(sent | ({"sessionId": session} if session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            if page := self.pages.get(message.get("sessionId", "")):
                page.heard(message)

    def page(self) -> Page:
        """A new page."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        told = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(pipe=self, session=told["sessionId"])
        self.pages[page.session] = page
        return page

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + 2 * WAIT_S
        while b"\0" not in self._rest:
            left = until - time.monotonic()
            ready = select.select([self._read], [], [], max(left, 0))[0]
            assert ready, "the browser is silent"
            data = os.read(self._read, 1 << 20)
            assert data, f"the browser ended: {self.process.poll()}"
            self._rest += data
        one, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        return message


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Pipe]:
    """A running browser; ended, with all of its own processes, at the end."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    # the browser reads commands from descriptor 3 and answers on 4
    wrapped = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", wrapped, program, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(to_read)
    os.close(from_write)
    pipe = Pipe(process, to_write, from_read)
    try:
        yield pipe
        pipe.call("Browser.close", {})
    finally:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        os.close(to_write)
        os.close(from_read)
