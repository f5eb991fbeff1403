"""Overlays for 1, 8 and 64 GPUs: built, valid, and of the size they say."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from support.manifests import CLUSTER, OVERLAYS, Document, build, by_name, json_patch, ray_spec
from support.operator_rules import problems

RAY_OBJECTS = [
    ("RayCluster", "mstar"),
    *[("RayJob", f"mstar-{job}") for job in ("embed", "stage1", "stage2", "sweep")],
]


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> tuple[int, list[Document]]:
    """The number of GPUs an overlay is for, and its objects."""
    name: str = request.param
    return int(name.removeprefix("gpu-")), build(CLUSTER / "overlays" / name)


def test_kustomize_builds_the_same(overlay: tuple[int, list[Document]]) -> None:
    """Our few lines against kustomize itself, where kubectl is there."""
    num_gpus, found = overlay
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed here")
    folder = CLUSTER / "overlays" / f"gpu-{num_gpus}"
    command = [kubectl, "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert _sorted(list(yaml.safe_load_all(done.stdout))) == _sorted(found)


def _sorted(found: list[Document]) -> list[str]:
    return sorted(json.dumps(document, sort_keys=True) for document in found)


def test_what_is_built_is_valid(overlay: tuple[int, list[Document]]) -> None:
    _, found = overlay
    for kind, name in RAY_OBJECTS:
        assert problems(by_name(found, kind, name)) == []


def test_the_size_is_what_the_name_says(overlay: tuple[int, list[Document]]) -> None:
    """What training asks for is there, and spot or on-demand alone can carry an embedding."""
    num_gpus, found = overlay
    settings = by_name(found, "ConfigMap", "mstar-settings")["data"]
    assert settings["MSTAR_GPUS"] == str(num_gpus)
    for kind, name in RAY_OBJECTS:
        gpus = _gpus(by_name(found, kind, name))
        assert max(gpus.values()) == num_gpus, name
    for name in ("mstar-stage1", "mstar-stage2"):
        group = _groups(by_name(found, "RayJob", name))["gpu-on-demand"]
        assert group["minReplicas"] == group["maxReplicas"] == group["replicas"]


def _groups(document: Document) -> dict[str, Document]:
    return {group["groupName"]: group for group in ray_spec(document)["workerGroupSpecs"]}


def _gpus(document: Document) -> dict[str, int]:
    """GPUs of each group at its largest."""
    return {
        name: group["maxReplicas"] * int(_resources(group)["limits"].get("nvidia.com/gpu", "0"))
        for name, group in _groups(document).items()
    }


def _resources(group: Document) -> Document:
    (container,) = group["template"]["spec"]["containers"]
    found: Document = container["resources"]
    return found


def test_ranks_of_a_pod_find_their_cpus(overlay: tuple[int, list[Document]]) -> None:
    """8 CPUs a rank, as the entry points ask, and some left for Ray's reading tasks."""
    _, found = overlay
    for kind, name in RAY_OBJECTS:
        for group in _groups(by_name(found, kind, name)).values():
            limits = _resources(group)["limits"]
            gpus = int(limits.get("nvidia.com/gpu", "0"))
            assert int(limits["cpu"]) >= 8 * gpus + gpus


def test_a_patch_that_misses_its_group_fails() -> None:
    """Groups are named by place: when one moves, the build stops and does not size another."""
    with pytest.raises(AssertionError):
        json_patch(
            {"groups": [{"name": "a"}]}, [{"op": "test", "path": "/groups/0/name", "value": "b"}]
        )
    with pytest.raises(KeyError):
        json_patch({"a": {}}, [{"op": "replace", "path": "/a/b", "value": 1}])


def test_every_overlay_tests_its_places() -> None:
    """Each patch of a Ray object begins with a test of all three group names."""
    for name in OVERLAYS:
        text = (Path(CLUSTER) / "overlays" / name / "kustomization.yaml").read_text()
        for patch in yaml.safe_load(text)["patches"]:
            operations = yaml.safe_load(patch["patch"])
            if patch["target"]["kind"].startswith("Ray"):
                tested = [op["value"] for op in operations if op["op"] == "test"][:3]
                assert tested == ["readers", "gpu-on-demand", "gpu-spot"]
