"""Object storage as Arrow and Ray see it, with the endpoint and keys that `objects` uses."""

import os

from pyarrow import fs

PLACES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CA_BUNDLE",
    "AWS_MAX_ATTEMPTS",
)
TRIES = 10
CONNECT_S = 10.0  # Arrow's own second gives up on a store that is busy
_NAMED = {
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "region": "AWS_DEFAULT_REGION",
}


def arrow_filesystem() -> fs.FileSystem:
    """The S3 filesystem of this process's environment, also where it is sent to another process.

    Keys that the environment states travel with it; where it states none (a role of the machine),
    every process finds its own.
    """
    settings: dict[str, object] = {
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
        "connect_timeout": CONNECT_S,
        **{
            name: os.environ[variable]
            for name, variable in _NAMED.items()
            if variable in os.environ
        },
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        settings |= {"endpoint_override": host.rstrip("/"), "scheme": scheme}
    return fs.S3FileSystem(**settings)


def store_environment() -> dict[str, str]:
    """The variables that say where the object store is, for processes on other machines.

    No keys: Ray shows a runtime environment to everyone who may see the cluster. Every machine has
    its own, as `ray start` was given them, or a role.
    """
    return {name: os.environ[name] for name in PLACES if name in os.environ}
