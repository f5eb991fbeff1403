"""Kubernetes manifests as Python: reading, and the one kind of kustomize patch that we use."""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
FILES = ("raycluster", "rayjob-embed", "rayjob-stage1", "rayjob-stage2", "rayjob-sweep")
RAY_JOBS = FILES[1:]
OVERLAYS = ("gpu-1", "gpu-8", "gpu-64")
Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    """The objects of a YAML file; a key that stands twice is an error."""
    return [found for found in yaml.load_all(path.read_text(), Loader=_Strict) if found]


class _Strict(yaml.SafeLoader):
    """YAML's loader lets the last of two equal keys win, Kubernetes refuses them."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> Document:
    found: Document = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        assert key not in found, f"{key} stands twice: {key_node.start_mark}"
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def build(folder: Path) -> list[Document]:
    """What kustomize makes of a folder with resources and JSON 6902 patches, and nothing else."""
    (plan,) = documents(folder / "kustomization.yaml")
    assert plan.keys() <= {"apiVersion", "kind", "resources", "patches"}, plan.keys()
    found: list[Document] = []
    for name in plan["resources"]:
        path = (folder / name).resolve()
        found += build(path) if path.is_dir() else documents(path)
    for patch in plan.get("patches", ()):
        chosen = [at for at, one in enumerate(found) if _is_target(one, patch["target"])]
        assert chosen, f"{folder.name}: no object for {patch['target']}"
        for at in chosen:
            found[at] = json_patch(found[at], yaml.safe_load(patch["patch"]))
    return found


def _is_target(document: Document, target: Document) -> bool:
    """Kustomize takes the name as a regular expression that must match whole."""
    assert target.keys() == {"kind", "name"}
    same_kind = document["kind"] == target["kind"]
    return same_kind and re.fullmatch(target["name"], document["metadata"]["name"]) is not None


def json_patch(document: Document, operations: list[Document]) -> Document:
    """RFC 6902 with `test` and `replace`."""
    patched = copy.deepcopy(document)
    for operation in operations:
        *way, last = (_part(part) for part in operation["path"].split("/")[1:])
        place: Any = patched
        for part in way:
            place = place[int(part) if isinstance(place, list) else part]
        key = int(last) if isinstance(place, list) else last
        if operation["op"] == "test":
            assert place[key] == operation["value"], operation
        else:
            assert operation["op"] == "replace", operation
            place[key]  # what is not there cannot be replaced
            place[key] = operation["value"]
    return patched


def _part(text: str) -> str:
    return text.replace("~1", "/").replace("~0", "~")


def by_name(found: list[Document], kind: str, name: str) -> Document:
    """The one object of a kind and name."""
    (one,) = (d for d in found if d["kind"] == kind and d["metadata"]["name"] == name)
    return one


def ray_spec(document: Document) -> Document:
    """The cluster that a RayCluster or a RayJob describes."""
    spec: Document = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pod_templates(document: Document) -> dict[str, Document]:
    """Every pod template of an object by a name for messages."""
    kind, spec = document["kind"], document.get("spec", {})
    if kind in ("Deployment", "StatefulSet", "Job"):
        return {document["metadata"]["name"]: spec["template"]}
    if kind not in ("RayCluster", "RayJob"):
        return {}
    cluster = ray_spec(document)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    if kind == "RayJob":
        found["submitter"] = spec["submitterPodTemplate"]
    return found


def one(name: str) -> Document:
    """The object of `cluster/<name>.yaml`."""
    (document,) = documents(CLUSTER / f"{name}.yaml")
    return document
