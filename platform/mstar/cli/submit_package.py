"""What goes with a submitted job: the command, the variables, and the package when asked for.

Ray keeps a job's entrypoint, metadata and runtime environment as they are, and shows them to all
who may use the cluster (only to browsers are variables masked). So nothing secret may be in them:
credentials go by name, and the nodes have the values.
"""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mstar
from mstar.cli.submit_config import SubmitConfig
from mstar.config import to_dict
from mstar.downstream.spaces import spaces_folder
from mstar.errors import ConfigError
from mstar.storage.arrow import PLACES
from mstar.training.code_version import STAMP, SUBMITTED_CODE, this_code
from mstar.training.credentials import CREDENTIALS, holds_secret
from mstar.training.log_lines import LOG_FORMAT

SENT = (*PLACES, "MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL", LOG_FORMAT)
_REMOTE = ("s3://", "file://", "/")
_OUTPUTS = ("out", "cohort")  # fields that always name a folder
_NO_PATHS = ("encoder", "heads", "space", "preset", "layout", "tasks")  # whatever lies here


def entrypoint(config: SubmitConfig, words: Sequence[str]) -> str:
    """The command that the cluster runs; `-P`, so that no file of its folder passes for a module.

    `exec`: no shell in between, which a signal would end before the job.
    """
    return f"exec {shlex.join([config.python, '-P', '-m', 'mstar.cli.main', *words])}"


def runtime_env(config: SubmitConfig, folder: Path) -> dict[str, Any]:
    """Variables, and the package where it is to be shipped.

    folder: for a copy of the package; must live until the job is submitted.
    """
    made: dict[str, Any] = {"env_vars": variables(config, os.environ)}
    if config.ship_code:
        made["py_modules"] = [str(copy_package(folder))]
    return made


def variables(config: SubmitConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """What the job finds in its environment besides what its node has.

    Raises:
        ConfigError: a variable is not set, or its value holds a password.
    """
    sent = {
        SUBMITTED_CODE: this_code().to_json(),
        "RAY_JOB_STOP_WAIT_TIME_S": str(config.stop_wait_s),
    }
    if config.credentials:
        sent[CREDENTIALS] = ",".join(config.credentials)
    for name in dict.fromkeys((*SENT, *config.env)):
        if name not in environment:
            if name in config.env:
                raise ConfigError(f"--env {name}: it is not set here")
            continue
        if holds_secret(environment[name]):
            raise ConfigError(
                f"{name} holds a user name and password, which Ray would show. Leave them out; the "
                "cluster's nodes have them (for MLflow: MLFLOW_TRACKING_USERNAME and _PASSWORD)"
            )
        sent[name] = environment[name]
    return sent


def copy_package(folder: Path) -> Path:
    """The package with its commit written into it, as a wheel would have it."""
    package = Path(mstar.__file__).parent
    target = folder / "mstar"
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(package, target, ignore=unwanted)
    if not (target / "tune_spaces").exists():
        shutil.copytree(spaces_folder(), target / "tune_spaces", ignore=unwanted)
    code = this_code()
    (target / STAMP).write_text(f"{code.commit}{' modified' if code.modified else ''}\n")
    return target


def check_paths(job_config: Any) -> None:
    """Refuse paths that mean a folder of this machine's shell.

    Raises:
        ConfigError: names the field and what it would mean.
    """
    for name, text in _texts(to_dict(job_config), ""):
        if name in _NO_PATHS:
            continue
        # `uni=F1`, `a,b` and `C/slides/*.svs` are paths too: look at their parts
        parts = [part.rpartition("=")[2] for part in text.split(",")]
        for part in parts:
            here = bool(part) and os.path.exists(part.partition("*")[0] or part)
            relative = bool(part) and not part.startswith(_REMOTE)
            if relative and (name in _OUTPUTS or here):
                raise ConfigError(
                    f"--{name.replace('_', '-')} {part}: a relative path is another folder on the "
                    "cluster, and is lost with the job. Give s3://… or the absolute path of a "
                    "folder that all nodes share"
                )


def _texts(value: Any, name: str) -> list[tuple[str, str]]:
    """Every text of a config with the name of its field."""
    if isinstance(value, Mapping):
        return [found for key, part in value.items() for found in _texts(part, key)]
    if isinstance(value, list):
        return [found for part in value for found in _texts(part, name)]
    return [(name, value)] if isinstance(value, str) else []
