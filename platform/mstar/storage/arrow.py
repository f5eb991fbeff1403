"""Object storage as Arrow and Ray see it, with the endpoint and keys that `objects` uses."""

import os

from pyarrow import fs

TRIES = 10
CONNECT_S = 10.0  # Arrow's own second gives up on a store that is busy


def arrow_filesystem() -> fs.FileSystem:
    """The S3 filesystem of the environment (`AWS_ENDPOINT_URL`, keys and region as Arrow reads)."""
    settings: dict[str, object] = {
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
        "connect_timeout": CONNECT_S,
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        settings |= {"endpoint_override": host.rstrip("/"), "scheme": scheme}
    return fs.S3FileSystem(**settings)
