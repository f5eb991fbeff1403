"""cohort.json: what made a cohort folder, written last, so that its presence means complete."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mstar.errors import CohortError, TableError
from mstar.storage import objects

RECORD = "cohort.json"
_CHUNK_BYTES = 1 << 22


def record_uri(out: str) -> str:
    """Where the record of a cohort folder is."""
    return objects.join(out, RECORD)


def read_record(out: str) -> dict[str, Any] | None:
    """The record of a cohort folder; None where no cohort is complete.

    Raises:
        CohortError: there is one that this job cannot have written.
    """
    try:
        record = json.loads(objects.read_bytes(record_uri(out)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CohortError(
            f"{record_uri(out)}: expected JSON, got {error}. Delete it to build the cohort anew."
        ) from error
    if not isinstance(record, dict) or not {"settings", "sources", "counts"} <= record.keys():
        raise CohortError(
            f"{record_uri(out)}: expected the record of `mstar cohort build`, got something else. "
            "Choose another --out."
        )
    return record


def write_record(out: str, record: Mapping[str, Any]) -> None:
    """Write the record; equal records give equal bytes."""
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
    objects.write_whole(record_uri(out), text.encode() + b"\n")


def digest_of(uri: str) -> str:
    """The sha256 of a file, read in pieces."""
    total = hashlib.sha256()
    try:
        with objects.open_read(uri) as file:
            while chunk := file.read(_CHUNK_BYTES):
                total.update(chunk)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise TableError(f"{uri}: there is no such file. Check the path.") from error
    return total.hexdigest()
