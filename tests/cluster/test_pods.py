"""The pods of a Ray cluster: what they may do, their room, their probes, where they are placed."""

import re

import pytest

from support.manifests import CLUSTER, FILES, by_name, documents, one, pod_templates, ray_spec


@pytest.mark.parametrize("name", FILES)
def test_no_work_runs_on_the_head(name: str) -> None:
    assert ray_spec(one(name))["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", FILES)
def test_pods_cannot_do_more_than_they_must(name: str) -> None:
    """Everything that the `restricted` pod security standard asks, and a read-only root."""
    for template in pod_templates(one(name)).values():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            writable = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/home/mstar"} <= writable


@pytest.mark.parametrize("name", FILES)
def test_ray_pods_have_room_and_are_watched(name: str) -> None:
    """The store fits /dev/shm, which fits memory; spilling has a volume; probes; metrics."""
    spec = ray_spec(one(name))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        shm = volumes[mounts["/dev/shm"]]
        assert shm["medium"] == "Memory"
        store = int(group["rayStartParams"]["object-store-memory"])
        assert (
            store
            < gibibytes(shm["sizeLimit"])
            < gibibytes(container["resources"]["limits"]["memory"])
        )
        assert mounts[group["rayStartParams"]["object-spilling-directory"]] == "spill"
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert (
            container["resources"]["requests"]["memory"]
            == container["resources"]["limits"]["memory"]
        )
        assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]


@pytest.mark.parametrize("name", FILES)
def test_what_must_be_local_lies_on_a_volume(name: str) -> None:
    """The root is read-only: every folder that the settings name is below a mount, everywhere."""
    settings = by_name(documents(CLUSTER / "settings.yaml"), "ConfigMap", "mstar-settings")["data"]
    folders = {key: value for key, value in settings.items() if value.startswith("/")}
    assert folders.keys() == {"MSTAR_CACHE_DIR", "MSTAR_CACHE", "MSTAR_STATE", "HF_HOME"}
    spec = ray_spec(one(name))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        mounts = tuple(f"{mount['mountPath']}/" for mount in container["volumeMounts"])
        assert all(folder.startswith(mounts) for folder in folders.values())


def gibibytes(text: str) -> int:
    return int(text.removesuffix("Gi")) << 30


@pytest.mark.parametrize("name", FILES)
def test_spot_first_and_the_head_never_on_spot(name: str) -> None:
    spec = ray_spec(one(name))
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups.keys() == {"readers", "gpu-on-demand", "gpu-spot"}
    assert groups["gpu-spot"]["priority"] > groups["gpu-on-demand"]["priority"]
    assert (
        spec["headGroupSpec"]["template"]["spec"]["affinity"]
        == (groups["gpu-on-demand"]["template"]["spec"]["affinity"])
    )
    for group in groups.values():
        pod = group["template"]["spec"]
        market = group["labels"]["ray.io/market-type"]
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        operators = {
            expression["operator"]
            for term in terms["nodeSelectorTerms"]
            for expression in term["matchExpressions"]
        }
        assert operators == ({"In"} if market == "spot" else {"NotIn", "DoesNotExist"})
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", ())}
        assert ("cloud.google.com/gke-spot" in tolerated) == (market == "spot")
        assert ("nvidia.com/gpu" in tolerated) == group["groupName"].startswith("gpu")


@pytest.mark.parametrize("name", FILES)
def test_a_worker_that_must_go_says_so_in_time(name: str) -> None:
    """The notice ends before the grace period does."""
    for group in ray_spec(one(name))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        hook = container["lifecycle"]["preStop"]["exec"]["command"][-1]
        notice = re.fullmatch(r"drain-node (\d+); ray stop", hook)
        assert notice is not None
        assert int(notice[1]) < pod["terminationGracePeriodSeconds"]
        assert (CLUSTER / "bin" / "drain-node").stat().st_mode & 0o111
