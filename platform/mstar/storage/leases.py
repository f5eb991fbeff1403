"""Leases share a store's slides between runs: `<root>/<quoted key>.json` says who works on a key.

A lease is created by a conditional write, renewed at a third of its life, and taken over when it
has expired or its owner is a process of this host that is gone. Renewing and taking over replace
the file only if it is still the one that was read, so two takers never both win, and an owner that
was frozen past its expiry notices when it renews.

What a lease cannot give: an owner frozen past its expiry believes in it until it looks, and host
clocks differ (`skew_s` is tolerated). Then two runs do the same work. Therefore correctness never
rests on a lease: the final write is conditional and equal work gives equal bytes. On a store that
ignores If-Match, two takers may both win; the consequence is the same.
"""

import dataclasses
import json
import logging
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from mstar.errors import StorageError
from mstar.storage import objects
from mstar.storage.ids import quoted
from mstar.storage.processes import ProcessName, is_known_dead, this_process

_log = logging.getLogger(__name__)

DEFAULT_TTL_S = 60.0
DEFAULT_SKEW_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseInfo:
    """The content of a lease file; `token` names the board that holds it."""

    key: str
    run_id: str
    owner: ProcessName
    expires_unix: float
    token: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A lease file as read; `info` is None when the file makes no sense."""

    info: LeaseInfo | None
    tag: str


class LeaseBoard:
    """One process's leases below `root`; safe to use from several threads."""

    def __init__(
        self,
        root: str,
        *,
        run_id: str,
        ttl_s: float = DEFAULT_TTL_S,
        skew_s: float = DEFAULT_SKEW_S,
    ) -> None:
        """Hold leases for `ttl_s` at a time; others' are expired `skew_s` after they say so."""
        self._root, self._run_id = root, run_id
        self._ttl_s, self._skew_s = ttl_s, skew_s
        self._token = secrets.token_hex(12)
        self._owner = this_process()
        self._lock = threading.RLock()
        self._held: dict[str, float] = {}  # key → monotonic time of the last renewal
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> frozenset[str]:
        """The keys that this board believes to hold."""
        with self._lock:
            return frozenset(self._held)

    def acquire(self, key: str) -> bool:
        """Take the lease of a key, new, lapsed or already ours; False when another has it."""
        asked_s = time.monotonic()
        taken = self._create(key) or self._take_over(key)
        if taken:
            with self._lock:
                self._held[key] = asked_s
        return taken

    def release(self, key: str) -> None:
        """Give a lease back; does nothing to one that another has taken meanwhile."""
        with self._lock:
            self._held.pop(key, None)
        found = self._find(key)
        if found is not None and self._is_mine(found):
            objects.delete_if(self._uri(key), found.tag)

    def renew_all(self) -> frozenset[str]:
        """Extend every lease held; returns the keys that were lost, and forgets them."""
        lost = frozenset(key for key in self.held if not self._renew(key))
        with self._lock:
            for key in lost:
                self._held.pop(key, None)
        return lost

    def still_mine(self, key: str) -> bool:
        """Whether the lease says, now, that it is this board's and has not expired."""
        found = self._find(key)
        return found is not None and self._is_mine(found) and not self._expired(found, skew_s=0)

    def holder(self, key: str) -> LeaseInfo | None:
        """Who has a valid lease of the key; None when it can be taken."""
        found = self._find(key)
        if found is None or found.info is None or self._can_be_taken(found):
            return None
        return found.info

    def start(self) -> None:
        """Renew in a background thread from now on."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._keep_renewing, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop renewing. Leases still held stay until they expire or are released."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _keep_renewing(self) -> None:
        while not self._stopping.wait(self._ttl_s / 3):
            lost = self.renew_all()
            if lost:
                _log.warning("run %s lost the leases of %s", self._run_id, sorted(lost))

    def _create(self, key: str) -> bool:
        return objects.write_whole(self._uri(key), self._lease(key), if_absent=True)

    def _take_over(self, key: str) -> bool:
        """Replace a lease that is ours or has lapsed; one that just vanished is created."""
        found = self._find(key)
        if found is None:
            return self._create(key)
        if not self._is_mine(found) and not self._can_be_taken(found):
            return False
        return self._replace(key, found)

    def _renew(self, key: str) -> bool:
        """Extend one lease; a store that cannot be reached now does not lose it before expiry."""
        asked_s = time.monotonic()
        try:
            found = self._find(key)
            kept = found is not None and self._is_mine(found) and self._replace(key, found)
        except StorageError as error:
            _log.warning("lease of %s not renewed: %s", key, error)
            with self._lock:
                return asked_s - self._held.get(key, asked_s) < self._ttl_s
        with self._lock:
            if kept and key in self._held:
                self._held[key] = asked_s
            return kept or key not in self._held  # released meanwhile: not lost

    def _replace(self, key: str, found: _Found) -> bool:
        if objects.replace_if(self._uri(key), self._lease(key), found.tag):
            return True
        now = self._find(key)  # a lost answer looks like a refusal
        return now is not None and self._is_mine(now)

    def _find(self, key: str) -> _Found | None:
        read = objects.read_tagged(self._uri(key))
        return None if read is None else _Found(_parse(read[0]), read[1])

    def _is_mine(self, found: _Found) -> bool:
        return found.info is not None and found.info.token == self._token

    def _can_be_taken(self, found: _Found) -> bool:
        """Nonsense can: leases are written whole, so no owner left it like that."""
        if found.info is None or is_known_dead(found.info.owner):
            return True
        return self._expired(found, skew_s=self._skew_s)

    def _expired(self, found: _Found, *, skew_s: float) -> bool:
        return found.info is None or time.time() > found.info.expires_unix + skew_s

    def _lease(self, key: str) -> bytes:
        info = LeaseInfo(
            key=key,
            run_id=self._run_id,
            owner=self._owner,
            expires_unix=time.time() + self._ttl_s,
            token=self._token,
        )
        return json.dumps(dataclasses.asdict(info)).encode()

    def _uri(self, key: str) -> str:
        return objects.join(self._root, quoted(key) + ".json")


def _parse(data: bytes) -> LeaseInfo | None:
    try:
        fields: dict[str, Any] = json.loads(data)
        return LeaseInfo(**{**fields, "owner": ProcessName(**fields["owner"])})
    except (ValueError, TypeError, KeyError):
        return None
