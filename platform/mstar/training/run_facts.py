"""What a run is remembered by: its settings as flat text, and the circumstances it ran in."""

import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mstar
from mstar.config import to_dict
from mstar.training.code_version import this_code
from mstar.training.credentials import redact

VERSIONS = ("torch", "ray", "mlflow", "timm", "openslide-python", "pyvips")
# MLflow's own rule for the names of params, metrics and tags.
NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)
MAX_NAME_LENGTH = 250


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """A nested config as `a.b` → text; lists as JSON."""
    value = to_dict(config)
    if isinstance(value, dict) and value:
        flat: dict[str, str] = {}
        for key, part in value.items():
            flat |= flatten(part, f"{prefix}.{key}" if prefix else key)
        return flat
    text = value if isinstance(value, str) else json.dumps(value)
    return {clean_name(prefix): redact(text)} if prefix else {}


def clean_name(name: str) -> str:
    """A name that MLflow takes."""
    return NOT_IN_A_NAME.sub("_", name)[:MAX_NAME_LENGTH]


def shorten(text: str, max_length: int) -> str:
    """The text, or its beginning and its full length."""
    if len(text) <= max_length:
        return text
    tail = f"… ({len(text)} characters)"
    return text[: max_length - len(tail)] + tail


def run_tags() -> dict[str, str]:
    """The circumstances of this process: versions, commit, host, command, Ray job."""
    tags = {
        "mstar.version": mstar.__version__,
        "mstar.command": command_line(),
        "mstar.host": socket.gethostname(),
        "mstar.python": ".".join(map(str, sys.version_info[:3])),
        **{f"mstar.{name}": version(name) for name in VERSIONS},
        **code_tags(),
        "ray.submission_id": ray_submission_id(),
    }
    return {name: value for name, value in tags.items() if value}


def command_line() -> str:
    """What the user typed, without credentials."""
    program, *arguments = sys.argv or [""]
    return redact(shlex.join([Path(program).name, *arguments]))


def version(distribution: str) -> str:
    """The installed version of a distribution, empty when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def code_tags() -> dict[str, str]:
    """The code this process runs: what a later reader needs to find it again."""
    code = this_code()
    edited = {"mstar.git_dirty": "true" if code.modified else "false"} if code.commit else {}
    return {"mstar.git_commit": code.commit, "mstar.source": code.source, **edited}


def ray_submission_id() -> str:
    """The id under which `ray job submit` started this process, empty when it did not."""
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return ""
    found = job.get("metadata", {}).get("job_submission_id", "") if isinstance(job, Mapping) else ""
    return str(found)
