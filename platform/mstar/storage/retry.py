"""Repeats object-store calls that failed for a passing reason.

Passing: 503, SlowDown, 500, 429, time-outs, refused and cut connections, bytes damaged on the way.
Not passing, raised at once: 403, 404, and everything else that the next try would meet again.
The client libraries' own retries are switched off, so that this is the only place that repeats.
"""

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from mstar.errors import StorageError

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long apart: `first_wait_s` doubled each time up to `longest_wait_s`.

    As they are, the waits add up to between 65 s and 132 s: an outage of a minute is outlasted.
    """

    tries: int = 13
    first_wait_s: float = 0.25
    longest_wait_s: float = 20.0

    def wait_s(self, tries_made: int) -> float:
        """Between half and all of the exponential wait, so that workers do not return in step."""
        full = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (tries_made - 1))
        return full * random.uniform(0.5, 1.0)


DEFAULT_POLICY = RetryPolicy()

_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "RequestTimeout",
        "RequestTimeTooSkewed",  # a request that waited long in a queue on our side
        "Throttling",
        "ThrottlingException",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "ConditionalRequestConflict",  # two conditional writes at once: S3 asks to repeat
        "OperationAborted",
    }
)
# By name along the class hierarchy, so that this module needs none of the client libraries.
_PASSING_CLASSES = frozenset(
    {
        "HTTPClientError",  # botocore: connection closed, timed out, proxy trouble
        "ConnectionError/botocore",  # refused, no such host (yet)
        "ResponseParserError",  # botocore: an answer cut off in the middle of its XML
        "IncompleteReadError",
        "ClientError/aiohttp",  # connection reset, payload cut
        "FSTimeoutError",
        "ShortReadError",
    }
)
_PASSING_ERRNOS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH})

_counter_lock = threading.Lock()
_retries = 0


class ShortReadError(Exception):
    """Fewer bytes came than the object has: the connection was cut."""


def retries_made() -> int:
    """How many calls this process has repeated so far."""
    return _retries


def call(
    act: Callable[[], Result], *, uri: str, doing: str, policy: RetryPolicy = DEFAULT_POLICY
) -> Result:
    """The result of `act`, repeated while it fails for a passing reason.

    Raises:
        StorageError: it failed for a passing reason `policy.tries` times.
        Exception: whatever `act` raised that repeating would not help.
    """
    for tries_made in range(1, policy.tries + 1):
        try:
            return act()
        except Exception as error:
            if not is_passing(error):
                raise
            if tries_made == policy.tries:
                raise StorageError(_final_message(uri, doing, policy.tries, error)) from error
            _count_retry()
            wait_s = policy.wait_s(tries_made)
            _log.info("%s %s: %s; again in %.1f s", doing, uri, describe(error), wait_s)
            time.sleep(wait_s)
    raise AssertionError("a policy has at least one try")


def is_passing(error: BaseException) -> bool:
    """Whether the same call may well succeed a little later."""
    answer = _server_answer(error)
    if answer is not None:
        status, code = answer
        return status in _PASSING_STATUS or code in _PASSING_CODES
    return any(_is_passing_kind(link) for link in _chain(error))


def status_of(error: BaseException) -> int | None:
    """The HTTP status in the server's answer, None when there was no answer."""
    answer = _server_answer(error)
    return None if answer is None else answer[0]


def code_of(error: BaseException) -> str | None:
    """The S3 error code in the server's answer, None when there was no answer."""
    answer = _server_answer(error)
    return None if answer is None else answer[1]


def describe(error: BaseException) -> str:
    """One line about an error: the server's words when it answered, else the exception's."""
    answer = _server_answer(error)
    text = str(error) or type(error).__name__
    return text if answer is None else f"HTTP {answer[0]} {answer[1]}: {text}"


def _is_passing_kind(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    names |= {f"{kind.__name__}/{kind.__module__.split('.')[0]}" for kind in type(error).__mro__}
    if names & _PASSING_CLASSES or isinstance(error, TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNOS


def _server_answer(error: BaseException) -> tuple[int, str] | None:
    """Status and error code from the botocore ClientError behind an error."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response["Error"].get("Code", ""))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _final_message(uri: str, doing: str, tries: int, error: BaseException) -> str:
    return (
        f"{doing} {uri} failed {tries} times, last with {describe(error)}. "
        "Check that the object store is up and reachable (mstar doctor), then rerun."
    )


def _count_retry() -> None:
    global _retries
    with _counter_lock:
        _retries += 1
