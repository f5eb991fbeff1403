"""What KubeRay's operator (v1.7) checks in code and no schema says, as one list of problems."""

import re
from typing import Any

from support.manifests import Document, ray_spec

MAX_NAME = {"RayCluster": 53, "RayJob": 47}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
IN_START_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")


def problems(document: Document) -> list[str]:
    """Why the operator would refuse a RayCluster or a RayJob; empty when it would not."""
    found = _name_problems(document) + _cluster_problems(ray_spec(document))
    if document["kind"] == "RayJob":
        found += _job_problems(document["spec"])
    return found


def _name_problems(document: Document) -> list[str]:
    name, longest = document["metadata"]["name"], MAX_NAME[document["kind"]]
    found = [] if len(name) <= longest else [f"name {name} is longer than {longest}"]
    return found if DNS_1035.fullmatch(name) else [*found, f"name {name} is not DNS-1035"]


def _job_problems(spec: Document) -> list[str]:
    shutdown, selector = spec.get("shutdownAfterJobFinishes", False), spec.get("clusterSelector")
    checks = {
        "ttlSecondsAfterFinished without shutdownAfterJobFinishes": (
            spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown
        ),
        "suspend without shutdownAfterJobFinishes": spec.get("suspend", False) and not shutdown,
        "backoffLimit with clusterSelector": bool(selector and spec.get("backoffLimit", 0) > 0),
        "neither rayClusterSpec nor clusterSelector": "rayClusterSpec" not in spec and not selector,
        "SidecarMode with a submitter of its own": (
            spec.get("submissionMode") == "SidecarMode"
            and bool(spec.keys() & {"submitterPodTemplate", "submitterConfig"})
        ),
        "a negative limit": min(spec.get(n, 0) for n in ("backoffLimit", "ttlSecondsAfterFinished"))
        < 0,
        "a deadline that is not positive": any(
            spec.get(n, 1) <= 0 for n in ("activeDeadlineSeconds", "preRunningDeadlineSeconds")
        ),
    }
    return [message for message, is_so in checks.items() if is_so]


def _cluster_problems(spec: Document) -> list[str]:
    found = _group_problems("head", spec["headGroupSpec"], spec)
    for group in spec["workerGroupSpecs"]:
        found += _group_problems(group["groupName"], group, spec)
        found += _replica_problems(group, spec)
    if spec.get("authOptions", {}).get("mode") == "token" and _version(spec) < (2, 52):
        found.append("token authentication needs Ray 2.52")
    return found


def _group_problems(name: str, group: Document, spec: Document) -> list[str]:
    params, found = group.get("rayStartParams", {}), []
    if group.get("resources") and any(params.get(key) for key in IN_START_PARAMS):
        found.append(f"{name}: resources both in rayStartParams and of the group")
    if "labels" in params:
        found.append(f"{name}: labels belong to the group, not to rayStartParams")
    if any(not LABEL_VALUE.fullmatch(value) for value in group.get("labels", {}).values()):
        found.append(f"{name}: a label value that Kubernetes refuses")
    if not group["template"]["spec"]["containers"]:
        found.append(f"{name}: no container")
    restart = group["template"]["spec"].get("restartPolicy", "Never")
    if _autoscaler_v2(spec) and restart != "Never":
        found.append(f"{name}: restartPolicy must be Never or unset with autoscaler v2")
    return found


def _replica_problems(group: Document, spec: Document) -> list[str]:
    name, found = group["groupName"], []
    low, high = group.get("minReplicas"), group.get("maxReplicas")
    if not spec.get("enableInTreeAutoscaling") and (low is None or high is None):
        found.append(f"{name}: both minReplicas and maxReplicas are needed without autoscaling")
    if low is not None and high is not None and low > high:
        found.append(f"{name}: minReplicas {low} > maxReplicas {high}")
    if any(number is not None and number < 0 for number in (low, high)):
        found.append(f"{name}: negative replicas")
    needs_v2 = [key for key in ("priority", "idleTimeoutSeconds") if group.get(key)]
    if needs_v2 and not _autoscaler_v2(spec):
        found.append(f"{name}: {needs_v2} need autoscaler v2")
    if group.get("priority") and _version(spec) < (2, 56):
        found.append(f"{name}: priority needs Ray 2.56")
    if spec.get("enableInTreeAutoscaling") and group.get("suspend"):
        found.append(f"{name}: cannot be suspended with autoscaling")
    return found


def _autoscaler_v2(spec: Document) -> bool:
    on = bool(spec.get("enableInTreeAutoscaling"))
    return on and spec.get("autoscalerOptions", {}).get("version") == "v2"


def _version(spec: Document) -> tuple[Any, ...]:
    return tuple(int(part) for part in spec.get("rayVersion", "0.0").split(".")[:2])
