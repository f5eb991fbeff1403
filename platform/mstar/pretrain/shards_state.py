"""What a shard job keeps beside the shards while it works, and takes away when it is done.

T/shards/shards.json      which shards these are, and how their shuffle is cut; made once
T/shards/_state/          the lease of the run at work, records of finished buckets, buckets
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from mstar import config as configs
from mstar.data.shards.format import INDEX, StoredCosine
from mstar.errors import ConfigError, FeatureError, StoreMismatchError
from mstar.pretrain.shards_plan import ShardSources, ShuffleShape
from mstar.storage import objects
from mstar.storage.leases import LeaseBoard

RECORD = "shards.json"
_RECORD_VERSION = 1
_KEY = "shards"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """The content of `shards.json`."""

    fingerprint: str
    identity: dict[str, Any]
    shape: ShuffleShape
    cosine: StoredCosine | None


def find_record(sources: ShardSources) -> ShardRecord | None:
    """The record of these shards, None where nothing was begun.

    Raises:
        StoreMismatchError: the folder holds other shards.
    """
    uri = objects.join(sources.folder, RECORD)
    try:
        fields = json.loads(objects.read_bytes(uri))
    except (FileNotFoundError, NotADirectoryError):
        _refuse_strays(sources)
        return None
    except ValueError as error:
        raise FeatureError(f"{uri}: expected JSON, got {error}. {_way_out(sources)}") from error
    if fields.get("identity") != sources.identity:
        lines = configs.differences(sources.identity, fields.get("identity") or {})
        raise StoreMismatchError(
            f"{sources.folder}: holds other shards ({fields.get('fingerprint')}, this run is "
            f"{sources.fingerprint}):\n  " + "\n  ".join(lines) + f"\n{_way_out(sources)}"
        )
    return ShardRecord(
        fingerprint=fields["fingerprint"],
        identity=fields["identity"],
        shape=ShuffleShape(**fields["shape"]),
        cosine=StoredCosine(**fields["cosine"]) if fields["cosine"] else None,
    )


def claim_record(
    sources: ShardSources, shape: ShuffleShape, cosine: StoredCosine | None
) -> ShardRecord:
    """Record these shards, unless they are; what was recorded first counts."""
    fields = {
        "schema_version": _RECORD_VERSION,
        "fingerprint": sources.fingerprint,
        "identity": sources.identity,
        "shape": asdict(shape),
        "cosine": None if cosine is None else asdict(cosine),
    }
    data = (configs.to_json(fields) + "\n").encode()
    objects.write_whole(objects.join(sources.folder, RECORD), data, if_absent=True)
    found = find_record(sources)
    assert found is not None, "it was written a moment ago"
    return found


@contextmanager
def only_run(sources: ShardSources, run_id: str) -> Iterator[None]:
    """Keep other runs from the same shards, as long as this one is alive.

    Raises:
        ConfigError: another run is at work on them.
    """
    ttl_s = sources.config.run.lease_s
    board = LeaseBoard(objects.join(sources.state, "claims"), run_id=run_id, ttl_s=ttl_s)
    if not board.acquire(_KEY):
        holder = board.holder(_KEY)
        raise ConfigError(
            f"{sources.folder}: another run ({holder.run_id if holder else 'unknown'}) writes these"
            f" shards. Wait for it; if it is dead, run again in {ttl_s:g} s."
        )
    board.start()
    try:
        yield
    finally:
        board.stop()
        board.release(_KEY)


def collect_stale(sources: ShardSources, *, finished: bool) -> None:
    """Remove buckets and records that nobody will use, those of this run too when it is finished.

    Buckets of other settings of the same output are stale: one folder holds one set of shards.
    """
    current = objects.join(sources.buckets)
    root = sources.bucket_root
    folders = {
        info.rel.split("/")[0]
        for info in objects.list_files(root)
        if info.rel.startswith(sources.bucket_prefix)
    }
    for name in sorted(folders):
        folder = objects.join(root, name)
        if finished or folder != current:
            objects.delete_tree(folder)
    if finished:
        objects.delete_tree(sources.state)
        objects.collect_stale_temps(sources.folder, older_than_s=0.0)
        if sources.config.shard.scratch is not None and objects.is_local(root):
            objects.collect_stale_temps(root, older_than_s=24 * 3600.0)


def _refuse_strays(sources: ShardSources) -> None:
    for info in objects.list_files(sources.folder):
        name = info.rel
        if name == INDEX or (name.startswith("shard-") and "/" not in name):
            raise StoreMismatchError(
                f"{sources.folder}: expected an empty folder or shards, got {name} without "
                f"{RECORD}. {_way_out(sources)}"
            )


def _way_out(sources: ShardSources) -> str:
    return f"Delete {sources.folder}, choose another --out, or repeat the settings of the shards."
