"""`store.json`: what a store is, created once, by conditional write; and which slides it lists."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from mstar import config as configs
from mstar.errors import StoreMismatchError
from mstar.features.hdf5 import wrong
from mstar.storage import objects

RECORD = "store.json"
GRIDS = "_grids"
RESERVED = ("_state", GRIDS, "failures")  # folders that are not slides'
_RECORD_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecord:
    """The content of `store.json`."""

    kind: str  # features | grids
    suffix: str  # of the slide files
    fingerprint: str
    config: dict[str, Any]


def read_record(root: str, kind: str | None = None) -> StoreRecord:
    """Reads `store.json`; a folder without one, or of another kind, is a FeatureError."""
    found = _find_record(root)
    if found is None:
        way_out = "Give the folder that --out named, or import a foreign one with `mstar import`."
        raise wrong(root, RECORD, "a store", "no such file", way_out)
    if kind is not None and found.kind != kind:
        raise wrong(root, "kind of store", kind, found.kind, "Give the other folder.")
    return found


def new_record(kind: str, suffix: str, config: Any) -> StoreRecord:
    """The record of a store to be."""
    plain = cast(dict[str, Any], configs.to_dict(config))
    return StoreRecord(
        kind=kind, suffix=suffix, fingerprint=configs.fingerprint(plain), config=plain
    )


def claim_store(root: str, wanted: StoreRecord) -> StoreRecord:
    """Creates the store, or joins it when it is there and the same."""
    found = _find_record(root)
    if found is None:
        stray = next(list_ids(root, wanted.suffix), None)
        if stray is not None and _find_record(root) is None:  # not a run that started meanwhile
            raise StoreMismatchError(
                f"{root}: expected an empty folder or a store, got {stray}{wanted.suffix} "
                f"without {RECORD}. Choose another --out, or use `mstar import`."
            )
        uri, data = objects.join(root, RECORD), _dump_record(wanted)
        if objects.write_whole(uri, data, if_absent=True):
            return wanted
        found = read_record(root)
    if found != wanted:
        lines = "\n  ".join(configs.differences(_compared(wanted), _compared(found)))
        raise StoreMismatchError(
            f"{root}: holds {found.kind} of another configuration "
            f"({found.fingerprint}, this run is {wanted.fingerprint}):\n  {lines}\n"
            "Choose another --out, or repeat the settings of the store."
        )
    return found


def _compared(record: StoreRecord) -> dict[str, Any]:
    """What decides whether two records are the same store (the fingerprint says no more)."""
    return {"kind": record.kind, "suffix": record.suffix, **record.config}


def _dump_record(record: StoreRecord) -> bytes:
    """A record as the bytes of `store.json`."""
    fields = {"schema_version": _RECORD_VERSION, **configs.to_dict(record)}
    return (configs.to_json(fields) + "\n").encode()


def _find_record(root: str) -> StoreRecord | None:
    """The record of a store, None where there is none."""
    uri = objects.join(root, RECORD)
    if not objects.exists(uri):
        return None
    try:
        fields = json.loads(objects.read_bytes(uri))
        version = fields.pop("schema_version")
        if version <= _RECORD_VERSION:
            return StoreRecord(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        way_out = "Restore the file: without it the features cannot be told apart from others'."
        raise wrong(uri, "content", "a store record", str(error), way_out) from error
    raise wrong(uri, "schema_version", f"at most {_RECORD_VERSION}", version, "Update mstar.")


def list_ids(root: str, suffix: str) -> Iterator[str]:
    """Slide ids by the names of the finished files below `root`."""
    for info in objects.list_files(root, suffix=suffix):
        steps = info.rel.split("/")
        if steps[0] not in RESERVED and not any(step.startswith(".") for step in steps):
            yield info.rel.removesuffix(suffix)
