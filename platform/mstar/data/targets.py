"""The store of targets that `mstar targets` writes and the patch shards are made of.

    T/targets/targets.json        what the store is; created once, by conditional write
    T/targets/<slide_id>.h5       one finished slide, whole or absent (`target_files`)
    T/targets/_state/             claims and attempts of work in progress
    T/targets/failures/           the cases that failed, and why

    store = TargetStore.open("T")
    for slide_id in store.slide_ids():
        slide = store.read(slide_id)        # targets, rows, coords, case_id, provenance

As in a feature store, a slide is done when its name is listed, and one store holds one
configuration: another one is refused with the fields that differ.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mstar import config as configs
from mstar.data.target_files import SlideTargets, TargetProvenance, read_targets, write_targets
from mstar.errors import FeatureError, ManifestError, StoreMismatchError
from mstar.features.hdf5 import wrong
from mstar.storage import objects
from mstar.storage.ids import check_slide_id
from mstar.storage.ledger import Failure, FailureLedger

__all__ = ["SlideTargets", "TargetProvenance", "TargetRecord", "TargetStore"]

FOLDER = "targets"
RECORD = "targets.json"
SUFFIX = ".h5"
RESERVED = ("_state", "failures")  # folders that are not slides'

_RECORD_VERSION = 1
_OTHER_OUT = "Choose another --out, or repeat the settings of the store."


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRecord:
    """The content of `targets.json`.

    config: whatever decides a target; `mstar.pretrain.targets_config` names its fields.
    """

    fingerprint: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStore:
    """The targets of a cohort's slides, made by one aggregator under one configuration.

    root: the folder `targets` in the output of `mstar targets`.
    """

    root: str
    record: TargetRecord
    writable: bool

    @classmethod
    def open_or_create(cls, out: str, config: Mapping[str, Any]) -> "TargetStore":
        """Open the store of this configuration in the output `out`, or create it.

        Raises:
            StoreMismatchError: it holds targets of another configuration.
        """
        root = objects.join(out, FOLDER)
        return cls(root=root, record=_claim(root, _record(config)), writable=True)

    @classmethod
    def open(cls, out: str) -> "TargetStore":
        """Open the store in the output of `mstar targets` for reading.

        Raises:
            FeatureError: there is none.
        """
        root = objects.join(out, FOLDER)
        found = read_record(root)
        if found is None:
            way_out = "Give the folder that --out of `mstar targets` named."
            raise wrong(root, RECORD, "a store of targets", "no such file", way_out)
        return cls(root=root, record=found, writable=False)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the store's configuration."""
        return self.record.fingerprint

    @property
    def dim(self) -> int:
        """Length of a target."""
        return int(self.record.config["target_dim"])

    def slide_uri(self, slide_id: str) -> str:
        """Where the slide's file is, or will be; ids that would hide it are refused."""
        check_slide_id(slide_id)
        steps = slide_id.split("/")
        if steps[0] in RESERVED:
            raise ManifestError(
                f"slide_id {slide_id!r}: expected no folder of {RESERVED} first, which stores keep "
                "for themselves. Name it otherwise in the manifest."
            )
        return objects.join(self.root, *steps[:-1], steps[-1] + SUFFIX)

    def slide_ids(self) -> Iterator[str]:
        """The ids of all finished slides, as the listing streams in (unsorted)."""
        for info in objects.list_files(self.root, suffix=SUFFIX):
            if info.rel.split("/")[0] not in RESERVED:
                yield info.rel.removesuffix(SUFFIX)

    def has(self, slide_id: str) -> bool:
        """Whether the slide is finished."""
        return objects.exists(self.slide_uri(slide_id))

    def read(self, slide_id: str, *, check: Literal["fast", "full"] = "fast") -> SlideTargets:
        """Read a finished slide (`check`: see `read_targets`).

        Raises:
            FeatureError: it is not there, damaged, or of another store or slide.
        """
        uri = self.slide_uri(slide_id)
        try:
            found = read_targets(_source(uri), name=uri, check=check)
        except FileNotFoundError as error:
            raise wrong(uri, "file", "targets", "no such file", "Check the slide id.") from error
        for field, expected, got in (
            ("slide", slide_id, found.slide_id),
            ("fingerprint", self.fingerprint, found.provenance.fingerprint),
        ):
            if got != expected:
                way_out = "The file belongs elsewhere: delete it and run `mstar targets` again."
                raise wrong(uri, field, expected, got, way_out)
        return found

    def write(self, slide: SlideTargets) -> bool:
        """Put a finished slide under its name, unless it is there already.

        Equal work gives equal bytes, so losing a race changes nothing.

        Returns:
            Whether this call wrote the file.
        """
        assert self.writable, f"{self.root} was opened for reading"
        assert slide.provenance.fingerprint == self.fingerprint, slide.slide_id
        uri = self.slide_uri(slide.slide_id)
        if objects.exists(uri):
            return False
        with tempfile.TemporaryDirectory(prefix="mstar-") as folder:
            path = Path(folder) / "slide.hdf5"
            write_targets(path, slide)
            return objects.put_file(path, uri, if_absent=True)

    def failures(self) -> Iterator[Failure]:
        """The cases that have no targets and why, in the ledger's own form: ids are of cases."""
        return FailureLedger(objects.join(self.root, "failures")).all()

    def verify(self) -> Iterator[tuple[str, str]]:
        """Read every file fully; yields (slide id, problem) for each that is not sound."""
        for slide_id in self.slide_ids():
            try:
                self.read(slide_id, check="full")
            except FeatureError as error:
                yield slide_id, str(error)


def read_record(root: str) -> TargetRecord | None:
    """The record of a folder of targets, None where there is none."""
    uri = objects.join(root, RECORD)
    try:
        fields = json.loads(objects.read_bytes(uri))
        version = fields.pop("schema_version")
        if version <= _RECORD_VERSION:
            return TargetRecord(**fields)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        way_out = "Restore the file: without it the targets cannot be told apart from others'."
        raise wrong(uri, "content", "a record of targets", str(error), way_out) from error
    raise wrong(uri, "schema_version", f"at most {_RECORD_VERSION}", version, "Update mstar.")


def _record(config: Mapping[str, Any]) -> TargetRecord:
    plain = configs.to_dict(config)
    return TargetRecord(fingerprint=configs.fingerprint(plain), config=plain)


def _claim(root: str, wanted: TargetRecord) -> TargetRecord:
    """Create the store, or join it when it is there and the same."""
    found = read_record(root)
    if found is None:
        stray = next(iter(objects.list_files(root, suffix=SUFFIX)), None)
        if stray is not None and read_record(root) is None:  # not a run that started meanwhile
            raise StoreMismatchError(
                f"{root}: expected an empty folder or targets, got {stray.rel} without {RECORD}. "
                "Choose another --out."
            )
        fields = {"schema_version": _RECORD_VERSION, **configs.to_dict(wanted)}
        data = (configs.to_json(fields) + "\n").encode()
        if objects.write_whole(objects.join(root, RECORD), data, if_absent=True):
            return wanted
        found = read_record(root)
        assert found is not None, "it was there a moment ago"
    if found != wanted:
        lines = "\n  ".join(configs.differences(wanted.config, found.config))
        raise StoreMismatchError(
            f"{root}: holds targets of another configuration ({found.fingerprint}, this run is "
            f"{wanted.fingerprint}):\n  {lines}\n{_OTHER_OUT}"
        )
    return found


def _source(uri: str) -> Path | io.BytesIO:
    """A file's path, or its bytes: HDF5 would make a dozen small requests of a remote one."""
    return objects.local_path(uri) if objects.is_local(uri) else io.BytesIO(objects.read_bytes(uri))
