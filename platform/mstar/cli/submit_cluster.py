"""The cluster behind a dashboard: its nodes, a job's log as it comes, and how a job ended."""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from mstar.cli.submit_config import SubmitConfig
from mstar.errors import ConfigError, StorageError, WorkerError
from mstar.training.exit_codes import ExitCode

NODE_ID, MARKET = "ray.io/node-id", "ray.io/market-type"
POLL_S = 1.0
UNREACHABLE_S = 120.0  # how long the dashboard may be away before the client gives up


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverPlace:
    """Where the driver goes, and why, in a few words."""

    why: str
    labels: dict[str, str] = field(default_factory=dict)


def connect(address: str) -> JobSubmissionClient:
    """The job API at an address; the token comes from the environment.

    Raises:
        ConfigError: it does not answer, or does not take the token.
    """
    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, RuntimeError, ConnectionError, ValueError) as error:
        raise ConfigError(f"{address}: {_short(error)}. {way_in(str(error))}") from error


def way_in(message: str) -> str:
    """What to do about an answer that is not the one hoped for."""
    if any(word in message for word in ("401", "403", "oken", "nauthori")):
        return (
            "Set RAY_AUTH_MODE=token and the cluster's token, RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH, on this side too"
        )
    return "Is that the dashboard's address (port 8265), and can it be reached from here?"


def driver_place(config: SubmitConfig, address: str) -> DriverPlace:
    """Decides where the driver runs; Ray's own choice is the head node."""
    if config.driver_labels:
        labels = dict(label.split("=", 1) for label in config.driver_labels)
        return DriverPlace(why=", ".join(config.driver_labels), labels=labels)
    if config.driver == "head":
        return DriverPlace(why="the head node")
    try:
        nodes = list_nodes(address=address, limit=10_000, detail=True)
    except (RayStateApiException, RuntimeError) as error:
        return DriverPlace(why=f"the head node, for the nodes cannot be listed: {_short(error)}")
    return choose_place(config.driver, nodes)


def choose_place(driver: str, nodes: Sequence[Any]) -> DriverPlace:
    """The place among the nodes that are there now.

    nodes: with node_id, state, is_head_node, resources_total, labels, as Ray's state API has them.
    """
    alive = [node for node in nodes if node.state == "ALIVE"]
    heads = [node for node in alive if node.is_head_node]
    others = [node for node in alive if not node.is_head_node]
    steady = [node for node in others if (node.labels or {}).get(MARKET) != "spot"]
    if not heads or not (others if driver == "worker" else steady):
        if driver == "worker":
            raise ConfigError("--driver worker: there is no node besides the head; --driver head")
        return DriverPlace(why="the head node, there is no other that stays")
    labels = {NODE_ID: f"!{heads[0].node_id}"}
    if steady:
        labels[MARKET] = "!spot"
    return DriverPlace(why="a node that is not the head", labels=labels)


def follow(
    client: JobSubmissionClient, submission_id: str, *, say: Callable[[str], None]
) -> ExitCode:
    """Passes on the log of a job until it has ended; a connection that breaks is made again.

    Raises:
        StorageError: the dashboard was away for too long; the job goes on without us.
    """
    tail, away_since_s = _Tail(client, submission_id), None
    while True:
        try:
            asyncio.run(tail.show(say))
            details = client.get_job_info(submission_id)
            away_since_s = None
        except (RuntimeError, OSError) as error:
            now_s = time.monotonic()
            away_since_s = away_since_s or now_s
            if now_s - away_since_s > UNREACHABLE_S:
                raise StorageError(
                    f"{submission_id}: the dashboard has not answered for {UNREACHABLE_S:.0f} s "
                    f"({_short(error)}); the job may well go on"
                ) from error
            time.sleep(POLL_S)
            continue
        if details.status.is_terminal():
            return ended_as(details)
        time.sleep(POLL_S)


class _Tail:
    """The log of a job, each part of it once: every connection starts from its beginning."""

    def __init__(self, client: JobSubmissionClient, submission_id: str) -> None:
        self._client, self._id = client, submission_id
        self._shown = 0  # characters

    async def show(self, say: Callable[[str], None]) -> None:
        """Passes on what is new, until the log ends or the connection breaks."""
        seen = 0
        async for text in self._client.tail_job_logs(self._id):
            new = text[max(0, self._shown - seen) :]
            seen += len(text)
            if new:
                say(new)
                self._shown = seen


def ended_as(details: Any) -> ExitCode:
    """The exit code of a job that has ended: its driver's own, if it is one of ours."""
    if details.status == JobStatus.STOPPED:
        return ExitCode.INTERRUPTED
    if details.status == JobStatus.SUCCEEDED:
        return ExitCode.COMPLETE
    code = details.driver_exit_code
    return ExitCode(code) if code in set(ExitCode) - {ExitCode.COMPLETE} else ExitCode.FAILED


def state_line(client: JobSubmissionClient, submission_id: str, code: ExitCode) -> str:
    """One line on how a job ended; Ray's own reason where the driver never ran."""
    details = client.get_job_info(submission_id)
    line = f"{submission_id}: {details.status.value.lower()}, exit code {int(code)}"
    if details.status == JobStatus.FAILED and details.driver_exit_code is None:
        line += f": {_short(details.message or '')}"
    return line


def stop(client: JobSubmissionClient, submission_id: str) -> None:
    """Asks for an end, as `ray job stop` does."""
    try:
        client.stop_job(submission_id)
    except RuntimeError as error:
        raise WorkerError(f"{submission_id}: cannot be stopped: {_short(error)}") from error


def to_stdout(text: str) -> None:
    """Part of a log as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _short(error: object) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
