"""`mstar submit [--flags] JOB [RECIPE] [the job's flags]`: a job onto a Ray cluster.

    flags checked here ─▶ runtime environment ─▶ job API ─▶ links ─▶ its log, its exit code

The job's config is made here first, so that a wrong flag is an error of this shell and not of a
log on the cluster. Ctrl-C leaves the job running, or stops it, as the answer says.
"""

import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mstar.cli.job_table import JOBS, parts_of, take_job
from mstar.cli.resolve import JobParts, known_flags, resolve
from mstar.cli.submit_config import SubmitConfig
from mstar.errors import ConfigError, InterruptedRunError
from mstar.training.code_version import this_code
from mstar.training.exit_codes import ExitCode

SUMMARY = "any job → onto a Ray cluster, with its code, and its links"
NOT_SUBMITTED = ("submit", "demo", "doctor")
_NO_VALUE = ("--no-wait", "--ship-code", "--no-no-wait", "--no-ship-code")
_MANY = ("--credentials", "--env", "--driver-labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that was checked: its name, the words after `mstar`, and its resolved config."""

    job: str
    words: tuple[str, ...]
    config: Any


def run_words(words: Sequence[str]) -> int:
    """Runs `mstar submit` on the words after it."""
    own, rest = split_words(words)
    if {"-h", "--help"} & set(own) or not rest:
        resolve("submit", ["--help"], JobParts(config=SubmitConfig), summary=SUMMARY)
    config: SubmitConfig = resolve("submit", own, JobParts(config=SubmitConfig), summary=SUMMARY)
    return run(config, rest)


def run(config: SubmitConfig, words: Sequence[str]) -> int:
    """Submits a job, and follows it unless told not to; returns its exit code."""
    submission = check_job(words)
    address = find_address(config)
    from mstar.cli import submit_cluster as cluster  # Ray: seconds, once the flags are right

    client = cluster.connect(address)
    place = cluster.driver_place(config, address)
    submission_id = send(config, submission, client, place)
    print("\n".join(links(submission, address, submission_id, place.why)), flush=True)
    if config.no_wait:
        return ExitCode.COMPLETE
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = cluster.follow(client, submission_id, say=cluster.to_stdout)
    except (KeyboardInterrupt, InterruptedRunError):  # Ctrl-C, SIGTERM
        return leave(client, submission_id)
    print(cluster.state_line(client, submission_id, code), flush=True)
    return code


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `submit` itself, and those from the job's name on."""
    firsts = {name.split()[0] for name in JOBS}
    at = 0
    while at < len(words) and words[at].startswith("-"):
        flag = words[at].replace("_", "-")
        if flag in ("-h", "--help"):
            return list(words[: at + 1]), []
        at += 1
        if "=" in flag or flag in _NO_VALUE:
            continue
        at += 1
        while flag in _MANY and at < len(words) and words[at] not in firsts:
            if words[at].startswith("-"):
                break
            at += 1
    return list(words[:at]), list(words[at:])


def check_job(words: Sequence[str]) -> Submission:
    """Resolves the job's own command line, as it would be resolved on the cluster.

    Raises:
        ConfigError: no such job, recipe or flag, or a path that means another place there.
    """
    from mstar.cli.submit_package import check_paths

    name, rest = take_job(words)
    if name in NOT_SUBMITTED:
        raise ConfigError(f"mstar submit {name}: that is run here, without a cluster")
    parts = parts_of(JOBS[name])
    config_class = parts.config or type(parts.recipes[parts.default]())
    strays = {word.partition("=")[0] for word in rest} & set(known_flags(SubmitConfig))
    if strays := strays - set(known_flags(config_class)):
        raise ConfigError(
            f"{', '.join(sorted(strays))}: flags of submit stand before the job's name: "
            f"mstar submit {' '.join(sorted(strays))} … {name} …"
        )
    config = resolve(name, rest, parts, summary=JOBS[name].summary)
    check_paths(config)
    return Submission(job=name, words=(*name.split(), *rest), config=config)


def find_address(config: SubmitConfig) -> str:
    """The dashboard that takes the job.

    Raises:
        ConfigError: nothing names it, or what names it is Ray's own port.
    """
    stated = (
        config.address,
        os.environ.get("RAY_API_SERVER_ADDRESS"),
        os.environ.get("RAY_ADDRESS"),
    )
    address = next(filter(None, stated), "")
    if not address.startswith(("http://", "https://")):
        got = repr(address) if address else "nothing"
        raise ConfigError(
            f"--address: expected the dashboard, http://host:8265, got {got}. Give --address or "
            "set RAY_API_SERVER_ADDRESS"
        )
    return address.rstrip("/")


def send(config: SubmitConfig, submission: Submission, client: Any, place: Any) -> str:
    """Hands the job over; returns its submission id."""
    from mstar.cli.submit_package import entrypoint, runtime_env

    code = this_code()
    with tempfile.TemporaryDirectory() as folder:
        try:
            return str(
                client.submit_job(
                    entrypoint=entrypoint(config, submission.words),
                    submission_id=config.submission_id or new_id(submission.job),
                    runtime_env=runtime_env(config, Path(folder)),
                    metadata={"mstar_version": code.version, "mstar_commit": code.commit},
                    entrypoint_num_cpus=config.driver_cpus or None,
                    entrypoint_label_selector=place.labels or None,
                )
            )
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:500]
            raise ConfigError(f"the cluster did not take the job: {reason}") from error


def new_id(job: str) -> str:
    """`mstar-embed-20260131-120000-1a2b`."""
    moment = time.strftime("%Y%m%d-%H%M%S")
    return f"mstar-{job.replace(' ', '-')}-{moment}-{secrets.token_hex(2)}"


def links(submission: Submission, address: str, submission_id: str, driver: str) -> list[str]:
    """Where to look, and how to stop it."""
    mlflow = os.environ.get("MLFLOW_TRACKING_URI", "")
    tag = f'experiment {submission.job}, tags.`ray.submission_id` = "{submission_id}"'
    where = f"{mlflow}   {tag}" if mlflow else "no MLFLOW_TRACKING_URI: a file beside the output"
    return [
        f"submitted  {submission_id}",
        f"  code       {this_code()}",
        f"  driver     {driver}",
        f"  dashboard  {address}/#/jobs/{submission_id}",
        f"  mlflow     {where}",
        f"  log        ray job logs --address {address} --follow {submission_id}",
        f"  stop       ray job stop --address {address} {submission_id}",
    ]


def leave(client: Any, submission_id: str) -> int:
    """After Ctrl-C: asks what is to happen to the job; without a terminal it goes on."""
    from mstar.cli import submit_cluster as cluster

    answer = ""
    if sys.stdin.isatty():
        print("\nStop the job on the cluster too? [y/N] ", end="", file=sys.stderr, flush=True)
        try:
            answer = sys.stdin.readline().strip().lower()
        except KeyboardInterrupt:
            answer = ""
    if answer in ("y", "yes"):
        cluster.stop(client, submission_id)
        print(f"{submission_id}: told to stop; submit it again to go on", file=sys.stderr)
    else:
        print(
            f"{submission_id} goes on without this shell. To stop it: ray job stop {submission_id}",
            file=sys.stderr,
        )
    return ExitCode.INTERRUPTED
