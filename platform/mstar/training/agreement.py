"""Before a job uses a cluster: every node must run the driver's code, and have its credentials.

Two guards. At the start of a job one small task a node answers (`check_nodes`), so that a wrong
image is an error before any work. Because nodes may join later, every worker says its code in its
log as it starts (`code_version.check_worker`), and compares it with the driver's before it works
(`code_version.refuse_other_code`, called by actors, ranks and trials).
"""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mstar.errors import WorkerError
from mstar.training.code_version import (
    CODE_CHECK,
    DRIVER_CODE,
    CodeVersion,
    only_warns,
    this_code,
)
from mstar.training.credentials import missing_credentials

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 300.0
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAnswer:
    """What a node says of itself.

    code: None when it could not answer; then `problem` says why.
    missing: names of the credentials it does not have.
    """

    host: str
    code: CodeVersion | None = None
    missing: tuple[str, ...] = ()
    problem: str = ""


def worker_environment() -> dict[str, Any]:
    """The runtime environment of `ray.init`: every worker is told the driver's code."""
    stated = {CODE_CHECK: os.environ[CODE_CHECK]} if CODE_CHECK in os.environ else {}
    return {
        "worker_process_setup_hook": "mstar.training.code_version.check_worker",
        "env_vars": {DRIVER_CODE: this_code().to_json(), **stated},
    }


def check_nodes() -> int:
    """Asks every node that is alive; how many agreed.

    Raises:
        WorkerError: a node runs other code, or lacks a credential that the job was promised.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = _ask(nodes)
    problems = [problem for answer in answers if (problem := describe(answer))]
    if problems and only_warns():
        log.warning("%s; the driver runs %s", "; ".join(problems[:_MAX_SHOWN]), this_code())
    elif problems:
        more = f" (and {len(problems) - _MAX_SHOWN} more)" if len(problems) > _MAX_SHOWN else ""
        raise WorkerError(
            f"{len(problems)} of {len(nodes)} nodes cannot take part: "
            f"{'; '.join(problems[:_MAX_SHOWN])}{more}. The driver runs {this_code()}"
        )
    return len(answers)


def describe(answer: NodeAnswer) -> str:
    """What is wrong with a node and the way out, empty when nothing is."""
    if answer.problem:
        return f"{answer.host}: {answer.problem}"
    if answer.code is not None and not answer.code.agrees_with(this_code()):
        return f"{answer.host} runs {answer.code}"
    if answer.missing:
        names = ", ".join(answer.missing)
        return (
            f"{answer.host}: its environment has no {names}; credentials come from the cluster "
            "(a Kubernetes secret, an instance profile, the shell of `ray start`), never with a job"
        )
    return ""


def _answer() -> NodeAnswer:
    """Runs on a node."""
    missing = missing_credentials(os.environ)
    return NodeAnswer(host=socket.gethostname(), code=this_code(), missing=missing)


def _ask(nodes: Sequence[Mapping[str, Any]]) -> list[NodeAnswer]:
    """One task a node, all at once; a node that was lost meanwhile says nothing."""
    ask = ray.remote(num_cpus=0, max_retries=0)(_answer)
    tasks = {}
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        tasks[ask.options(scheduling_strategy=on_node).remote()] = node
    done, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_WITHIN_S)
    answers = [_result(task, tasks[task]) for task in done]
    for task in late:
        problem = f"did not answer within {ANSWER_WITHIN_S:.0f} s"
        answers.append(NodeAnswer(host=_host(tasks[task]), problem=problem))
    return [answer for answer in answers if answer is not None]


def _result(task: Any, node: Mapping[str, Any]) -> NodeAnswer | None:
    try:
        return ray.get(task)  # type: ignore[no-any-return]
    except ray.exceptions.TaskUnschedulableError:
        return None
    except ray.exceptions.WorkerCrashedError:
        problem = f"no worker could start there; is {this_code()} installed on it?"
        return NodeAnswer(host=_host(node), problem=problem)
    except ray.exceptions.RayError as error:
        return NodeAnswer(host=_host(node), problem=" ".join(str(error).split())[-500:])


def _host(node: Mapping[str, Any]) -> str:
    return str(node.get("NodeManagerHostname") or node.get("NodeManagerAddress"))
