"""What families are given besides labels and features, as one fingerprint of its content."""

import functools
import hashlib
from collections.abc import Iterator

from mstar.config import fingerprint
from mstar.downstream.families import needs_of
from mstar.downstream.family_job import FamilySources
from mstar.models.exports import AGGREGATOR, GENE_ENCODER, TEXT_ENCODER
from mstar.models.projection import PROJECTION
from mstar.storage import objects

TOKENIZER = "tokenizer"
_OF_STAGE1 = tuple(f"{name}.safetensors" for name in (AGGREGATOR, TEXT_ENCODER, GENE_ENCODER))
_OF_COHORT = ("cases.csv", "reports.csv", "expression/expression.json", "expression/values.npy")


def fingerprint_sources(kind: str, method: str, sources: FamilySources) -> str:
    """Equal for equal content, wherever it lies; what a method does not take does not count."""
    needs = needs_of(kind, method)
    found: list[tuple[str, str]] = []
    if "stage1" in needs:
        found += list(_below(sources.prompts)) if sources.prompts and kind != "retrieval" else []
        found += list(_named(sources.stage1, _OF_STAGE1))
        found += list(_below(objects.join(sources.stage1, TOKENIZER)))
        found += list(_named(sources.stage2, (PROJECTION,))) if sources.stage2 else []
    if "cohort" in needs and sources.cohort:
        found += list(_named(sources.cohort, _OF_COHORT))
    return fingerprint(found)


def stages_digest(kind: str, method: str, sources: FamilySources) -> str:
    """Of what stages 1 and 2 gave a method, whatever its prompts; empty where it takes neither."""
    if "stage1" not in needs_of(kind, method):
        return ""
    only = FamilySources(stage1=sources.stage1, stage2=sources.stage2)
    return fingerprint([kind, fingerprint_sources(kind, method, only)])


def _named(folder: str, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in names:
        uri = objects.join(folder, name)
        if objects.exists(uri):
            yield name, content_digest(uri)


def _below(root: str) -> Iterator[tuple[str, str]]:
    """A file, or every file of a folder."""
    infos = sorted(objects.list_files(root), key=lambda info: info.rel)
    for info in infos:
        yield info.rel, content_digest(info.uri)
    if not infos and objects.exists(root):
        yield root.rpartition("/")[2], content_digest(root)


@functools.lru_cache(maxsize=64)
def content_digest(uri: str) -> str:
    """sha256 of a file, read once a process."""
    if not objects.is_local(uri):
        return hashlib.sha256(objects.read_bytes(uri)).hexdigest()
    with objects.local_path(uri).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
