"""What a manifest may name, where the manifest comes from someone else.

A manifest's author chooses which files the job opens, with the job's rights. MSTAR_SLIDE_ROOTS, set
by who runs the cluster, limits that: folders and prefixes, separated by commas, as
`/data/slides,s3://cohort/`. Links are followed before the comparison. Unset, nothing is limited.
"""

import os
import posixpath
from collections.abc import Sequence

from mstar.errors import ConfigError
from mstar.storage import objects

SLIDE_ROOTS = "MSTAR_SLIDE_ROOTS"


def slide_roots() -> tuple[str, ...]:
    """The folders and prefixes that slides may lie in; empty: anywhere.

    Raises:
        ConfigError: a root is relative.
    """
    stated = [root.strip() for root in os.environ.get(SLIDE_ROOTS, "").split(",")]
    roots = tuple(filter(None, stated))
    for root in roots:
        if objects.is_local(root) and not os.path.isabs(objects.local_path(root)):
            raise ConfigError(f"{SLIDE_ROOTS}: {root}: expected an absolute folder or s3://…")
    return tuple(map(_plain, roots))


def outside(uri: str, roots: Sequence[str]) -> bool:
    """Whether an address lies in none of the roots; False where there are none."""
    if not roots:
        return False
    place = _plain(uri)
    return not any(place == root or place.startswith(root.rstrip("/") + "/") for root in roots)


def _plain(uri: str) -> str:
    """An address without `..`, and on disk without links."""
    if objects.is_local(uri):
        return os.path.realpath(objects.local_path(uri))
    return "s3:/" + posixpath.normpath(uri.removeprefix("s3:/"))
