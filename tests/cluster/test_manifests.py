"""The Ray manifests: strict schemas, the operator's rules, and what the platform promises."""

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mstar.cli.job_table import JOBS, parts_of, take_job
from mstar.cli.resolve import resolve
from mstar.training.exit_codes import ExitCode
from support.manifests import (
    CLUSTER,
    FILES,
    RAY_JOBS,
    ROOT,
    Document,
    by_name,
    documents,
    one,
    pod_templates,
    ray_spec,
)
from support.operator_rules import problems

SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"


def schema_of(kind: str) -> jsonschema.Draft202012Validator:
    path = SCHEMAS / f"{kind.lower()}.schema.json"
    if not path.exists():
        pytest.skip("the strict KubeRay schemas are not beside this checkout")
    return jsonschema.Draft202012Validator(json.loads(path.read_text()))


def locked(package: str) -> str:
    """The locked version of a package."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    (version,) = (line.split("==")[1] for line in lines if line.startswith(f"{package}=="))
    return version


@pytest.mark.parametrize("name", FILES)
def test_the_strict_schema_takes_it(name: str) -> None:
    document = one(name)
    found = list(schema_of(document["kind"]).iter_errors(document))
    assert not found, "\n".join(f"{error.json_path}: {error.message}" for error in found)


def test_the_strict_schema_refuses_a_typo() -> None:
    document = one("raycluster")
    ray_spec(document)["headGroupSpec"]["rayStartParam"] = {}
    assert list(schema_of("RayCluster").iter_errors(document))


@pytest.mark.parametrize("name", FILES)
def test_the_operator_takes_it(name: str) -> None:
    assert problems(one(name)) == []


def change(way: tuple[Any, ...], value: Any) -> Callable[[Document], None]:
    def apply(document: Document) -> None:
        place: Any = document
        for part in way[:-1]:
            place = place[part]
        place[way[-1]] = value

    return apply


GROUP = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)
REFUSED = {
    "DNS-1035": change(("metadata", "name"), "2embed"),
    "longer than 47": change(("metadata", "name"), "m" * 48),
    "minReplicas 3 > maxReplicas": change((*GROUP, "minReplicas"), 3),
    "without shutdownAfterJobFinishes": change(("spec", "shutdownAfterJobFinishes"), False),
    "restartPolicy": change((*GROUP, "template", "spec", "restartPolicy"), "Always"),
    "needs Ray 2.52": change(("spec", "rayClusterSpec", "rayVersion"), "2.40.0"),
    "need autoscaler v2": change(("spec", "rayClusterSpec", "autoscalerOptions", "version"), "v1"),
    "labels belong": change((*GROUP, "rayStartParams", "labels"), "a=b"),
    "both in rayStartParams": change(
        ("spec", "rayClusterSpec", "headGroupSpec", "resources"), {"CPU": "1"}
    ),
    "not positive": change(("spec", "preRunningDeadlineSeconds"), 0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_the_rules_see_what_the_operator_refuses(message: str) -> None:
    document = copy.deepcopy(one("rayjob-embed"))
    REFUSED[message](document)
    assert any(message in problem for problem in problems(document)), problems(document)


def test_a_backoff_limit_and_a_cluster_selector_exclude_one_another() -> None:
    document = one("rayjob-embed")
    document["spec"] |= {"backoffLimit": 1, "clusterSelector": {"ray.io/cluster": "mstar"}}
    assert "backoffLimit with clusterSelector" in problems(document)


@pytest.mark.parametrize("name", FILES)
def test_ray_image_and_lock_agree(name: str) -> None:
    """RayVersion, the tag of every image, the wheel's version and the lock."""
    document = one(name)
    ray, project = locked("ray"), (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert version is not None
    assert ray_spec(document)["rayVersion"] == ray
    images = {
        container["image"]
        for template in pod_templates(document).values()
        for container in template["spec"]["containers"]
    }
    assert {image.rsplit(":", 1)[1] for image in images} == {f"{version[1]}-ray{ray}-cuda"}
    assert len(images) == 1


@pytest.mark.parametrize("name", RAY_JOBS)
def test_all_clusters_are_the_same_but_for_replicas(name: str) -> None:
    """Five files say the same at length; this keeps them from drifting apart."""
    assert without_sizes(one(name)) == without_sizes(one("raycluster"))


def without_sizes(document: Document) -> Document:
    spec = json.loads(json.dumps(ray_spec(document)))
    for group in spec["workerGroupSpecs"]:
        for key in ("replicas", "minReplicas", "maxReplicas"):
            assert isinstance(group.pop(key), int)
    instance = f'"app.kubernetes.io/instance": "{document["metadata"]["name"]}"'
    text = json.dumps(spec)
    assert text.count(instance) == 4  # head and three groups
    found: Document = json.loads(text.replace(instance, '"app.kubernetes.io/instance": "any"'))
    return found


@pytest.mark.parametrize("name", FILES)
def test_calls_need_the_token(name: str) -> None:
    """The token is a Secret; the operator puts it into every container."""
    auth = ray_spec(one(name))["authOptions"]
    assert auth == {"mode": "token", "secretName": "mstar-ray-token"}


@pytest.mark.parametrize("name", RAY_JOBS)
def test_no_exit_code_builds_a_cluster_anew(name: str) -> None:
    """The operator sees FAILED only; with 0 no FAILED, that of exit code 3 included, is retried."""
    spec = one(name)["spec"]
    assert ExitCode.EXCLUSIONS != 0  # so Ray calls it FAILED, and the limit decides
    assert spec["backoffLimit"] == 0
    assert (
        spec["submitterConfig"]["backoffLimit"] >= 1
    )  # a lost head: submitted again, same cluster
    assert spec["submissionMode"] == "K8sJobMode"


@pytest.mark.parametrize("name", RAY_JOBS)
def test_the_entry_point_is_a_call_the_command_line_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings filled in, it resolves to a config: no flag is misspelt or missing."""
    settings = by_name(documents(CLUSTER / "settings.yaml"), "ConfigMap", "mstar-settings")["data"]
    text = one(name)["spec"]["entrypoint"]
    filled = re.sub(r"\$(\w+)", lambda match: settings[match[1]], text)
    program, *arguments = shlex.split(filled)
    assert program == "run-job"
    job, rest = take_job(arguments)
    assert job == name.removeprefix("rayjob-")
    config = resolve(job, rest, parts_of(JOBS[job]), summary="")
    assert config.out.startswith("s3://")


def test_secrets_are_references() -> None:
    """No manifest carries a Secret or a value that looks like one."""
    for path in CLUSTER.rglob("*.y*ml"):
        for document in documents(path):
            assert document.get("kind") != "Secret", path
        text = path.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", text), path


def test_every_name_that_is_referred_to_is_defined() -> None:
    """Priorities and settings exist; secrets are made by a command of the guide."""
    priorities = {d["metadata"]["name"] for d in documents(CLUSTER / "priorities.yaml")}
    guide = (ROOT / "platform" / "docs" / "cluster.md").read_text()
    for name in FILES:
        for template in pod_templates(one(name)).values():
            assert template["spec"]["priorityClassName"] in priorities
        text = (CLUSTER / f"{name}.yaml").read_text()
        for secret in set(re.findall(r"secret(?:Name|Ref): \{?(?:name: )?([a-z-]+)", text)):
            assert f"create secret generic {secret} " in guide, secret


def test_every_cluster_has_a_budget_for_its_head() -> None:
    """One object each, for a budget over two heads would let one go."""
    budgets = {
        budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"]: budget["spec"]
        for budget in documents(CLUSTER / "disruption.yaml")
    }
    for name in FILES:
        document = one(name)
        labels = pod_templates(document)["head"]["metadata"]["labels"]
        spec = budgets.pop(document["metadata"]["name"])
        assert spec["minAvailable"] == 1
        assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert budgets == {}


def test_nobody_reaches_ray_but_those_who_must() -> None:
    """The head's dashboard is open to the submitter and the operator, the rest to Ray alone."""
    found = documents(CLUSTER / "network.yaml")
    deny = by_name(found, "NetworkPolicy", "mstar-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress"]}
    rules = by_name(found, "NetworkPolicy", "mstar-ray")["spec"]["ingress"]
    open_to_all_ports = [rule for rule in rules if "ports" not in rule]
    assert open_to_all_ports == [
        {"from": [{"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}]}
    ]
    submitter = pod_templates(one("rayjob-embed"))["submitter"]["metadata"]["labels"]
    dashboard = [
        rule for rule in rules if {"protocol": "TCP", "port": 8265} in rule.get("ports", ())
    ]
    chosen = [source["podSelector"]["matchLabels"] for rule in dashboard for source in rule["from"]]
    assert any(labels.items() <= submitter.items() for labels in chosen)
    assert all(rule["from"] for rule in rules)


def files_of_core_kinds() -> list[Path]:
    ours = [CLUSTER / f"{n}.yaml" for n in ("namespace", "priorities", "disruption", "network")]
    services = sorted((CLUSTER / "services" / "kubernetes").glob("*.yaml"))
    return [*ours, CLUSTER / "settings.yaml", *services]


@pytest.mark.parametrize("path", files_of_core_kinds(), ids=lambda path: path.stem)
def test_kubernetes_own_schemas_take_it(path: Path) -> None:
    """Strictly: an unknown field is an error."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    found = documents(path)
    assert found
    for document in found:
        kubernetes_validate.validate(document, "1.33", strict=True)


@pytest.mark.parametrize("name", FILES)
def test_pods_of_ray_pass_kubernetes_own_schema(name: str) -> None:
    """The templates as pods: the KubeRay schema repeats that of pods, this is the original."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for group, template in pod_templates(one(name)).items():
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
        pod["metadata"] = {**pod["metadata"], "name": group}
        kubernetes_validate.validate(pod, "1.33", strict=True)


def test_monitors_choose_pods_that_exist() -> None:
    """By the operator's label and by port names that our pods have."""
    found = documents(CLUSTER / "monitoring" / "podmonitor.yaml")
    spec = by_name(found, "PodMonitor", "mstar-ray")["spec"]
    assert spec["selector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    (head,) = pod_templates(one("raycluster"))["head"]["spec"]["containers"]
    assert {end["port"] for end in spec["podMetricsEndpoints"]} <= {
        p["name"] for p in head["ports"]
    }
