"""The client of the object store that the environment names: address and keys come from there.

One client per process and endpoint, shared by all its threads. A forked process makes its own, for
the event loop of s3fs lives in a thread that a fork does not copy. Listings are never cached: one
that is minutes old would hide what other workers finished.
"""

import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from mstar.storage import retry

Result = TypeVar("Result")

_lock = threading.Lock()
_clients: dict[tuple[int, str | None, str | None], Any] = {}


def client() -> Any:
    """This process's client of the store that the environment names."""
    endpoint, key = os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_ACCESS_KEY_ID")
    name = (os.getpid(), endpoint, key)
    with _lock:
        if name not in _clients:
            _clients[name] = _connect()
        return _clients[name]


def _connect() -> Any:
    from s3fs import S3FileSystem  # half a second that work on local files can save

    fs = S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "retries": {"total_max_attempts": 1},  # retry.call repeats, and counts
            "max_pool_connections": 64,
            "connect_timeout": 10,
            "read_timeout": 60,
        },
    )
    fs.retries = 1
    return fs


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it while this process was forked


os.register_at_fork(after_in_child=_renew_lock)


def run_async(uri: str, doing: str, act: Callable[[Any], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine on the client's loop, with retries."""
    from fsspec.asyn import sync

    def once() -> Result:
        fs = client()
        return cast(Result, sync(fs.loop, act, fs))

    return retry.call(once, uri=uri, doing=doing)
