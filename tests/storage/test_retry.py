"""Retries: only of what passes, with growing waits, and never silently for ever."""

from __future__ import annotations

import aiohttp
import botocore.exceptions
import botocore.parsers
import pytest

from mstar.errors import StorageError
from mstar.storage import retry


def answered(status: int, code: str) -> Exception:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(response, "GetObject")


def translated(status: int, code: str) -> Exception:
    """As s3fs hands it on: an OSError whose cause is botocore's."""
    error = OSError(22, code)
    error.__cause__ = answered(status, code)
    return error


PASSING = [
    answered(503, "SlowDown"),
    answered(500, "InternalError"),
    answered(429, "TooManyRequests"),
    answered(409, "ConditionalRequestConflict"),
    answered(400, "RequestTimeout"),
    translated(503, "ServiceUnavailable"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
    botocore.parsers.ResponseParserError("cut"),
    aiohttp.ClientPayloadError("cut"),
    aiohttp.ServerDisconnectedError(),
    TimeoutError(),
    ConnectionResetError(),
    retry.ShortReadError("3 of 4"),
]
LASTING = [
    answered(403, "AccessDenied"),
    answered(404, "NoSuchKey"),
    answered(412, "PreconditionFailed"),
    answered(501, "NotImplemented"),
    translated(403, "SignatureDoesNotMatch"),
    botocore.exceptions.NoCredentialsError(),
    FileNotFoundError(),
    PermissionError(),
    OSError(28, "No space left on device"),
    ValueError(),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_passing_trouble_is_outlasted(error: Exception, no_waiting: list[int]) -> None:
    left = [error, error]

    def act() -> str:
        if left:
            raise left.pop()
        return "done"

    before = retry.retries_made()
    assert retry.call(act, uri="s3://b/x", doing="reading") == "done"
    assert retry.retries_made() == before + 2
    assert no_waiting == [1, 2]


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_lasting_trouble_is_raised_at_once(error: Exception, no_waiting: list[int]) -> None:
    calls = []

    def act() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        retry.call(act, uri="s3://b/x", doing="reading")
    assert caught.value is error
    assert len(calls) == 1
    assert no_waiting == []


def test_the_last_failure_names_address_and_cause(no_waiting: list[int]) -> None:
    def act() -> None:
        raise answered(503, "SlowDown")

    policy = retry.RetryPolicy(tries=3)
    with pytest.raises(StorageError, match=r"reading s3://b/x failed 3 times.*503 SlowDown"):
        retry.call(act, uri="s3://b/x", doing="reading", policy=policy)
    assert len(no_waiting) == 2


def test_waits_grow_stay_bounded_and_differ() -> None:
    policy = retry.RetryPolicy(first_wait_s=1, longest_wait_s=8)
    for tries_made, full_s in enumerate([1, 2, 4, 8, 8, 8], start=1):
        waits = [policy.wait_s(tries_made) for _ in range(200)]
        assert full_s / 2 <= min(waits) < max(waits) <= full_s
        assert len(set(waits)) > 100
