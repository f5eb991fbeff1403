"""How fast things go: measured on a machine (`mstar measure`), or from a table with its sources.

Rates of the device hold for one GPU; with device `cpu` for one core. Rates of cores are seconds of
one core. A rate file states what was measured there and nothing else; what it lacks comes from the
built-in table. Rates of another device than the plan's are not taken from a file.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mstar
from mstar.config import to_json
from mstar.errors import ConfigError
from mstar.planning.built_in import BY_DEVICE, BY_MACHINE, Figure
from mstar.planning.strict import check_date, check_positive, parse, read_json
from mstar.storage import objects

FORMAT = 1
REFERENCE_TRIAL_PATCHES = 1_000_000
WAY_OUT = "Make one with `mstar measure --out rates.json`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Everything a plan needs to know of machines.

    sources: name of a rate → `measured: …`, `published: …`, `derived: …` or `assumed: …`.
    """

    slide_open_core_s: float
    """Seconds of a core to open a slide, find its tissue and lay its grid."""
    patch_read_core_s: float
    """Seconds of a core to read and decode a patch and resize it to the encoder's input."""
    encoder_patches_per_s: float
    """Patches that one device encodes in a second, whole batches from memory."""
    worker_start_s: float
    """Seconds from a worker's start to its first batch: imports, weights, device."""
    stage1_cases_per_s: float
    """Cases that one device trains in a second, in stage 1 at the paper's sizes."""
    target_patches_per_s: float
    """Patches that one device re-embeds in a second, for the targets of stage 2."""
    shard_image_core_s: float
    """Seconds of a core to bring a patch of a slide into the form of the shards."""
    shard_sort_core_s: float
    """Seconds of a core per row of pass 1 of the shuffle: sorting and writing."""
    shard_merge_core_s: float
    """Seconds of a core per row of pass 2 of the shuffle: fetching, sorting, writing."""
    jpeg_decode_core_s: float
    """Seconds of a core to decode a stored patch of 256 px."""
    stage2_patches_per_s: float
    """Patches that one device trains in a second, in stage 2, computing alone."""
    head_trials_per_min: float
    """Reference trials a minute of one device: a MIL head over 1,000,000 patches of bags, forward
    and backward."""
    trial_overhead_s: float
    """Seconds that a trial takes beside computing, on a worker that is up."""
    storage_latency_s: float
    """Median seconds from a request to object storage to the first byte of its answer."""
    storage_tail: float
    """The 99th percentile of that latency, as a multiple of the median."""
    storage_stream_bytes_per_s: float
    """Bytes per second of one request's answer."""
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses rates that cannot be."""
        check_positive(self, *RATE_NAMES)
        if self.storage_tail < 1:
            raise ConfigError(
                f"storage_tail: expected at least 1, got {self.storage_tail:g}. Correct it."
            )

    def kind_of(self, name: str) -> str:
        """Whether a rate was measured, published, derived or assumed."""
        return self.sources[name].partition(":")[0]


RATE_NAMES = tuple(part.name for part in dataclasses.fields(Rates) if part.name != "sources")
DEVICE_RATES = (
    "encoder_patches_per_s",
    "stage1_cases_per_s",
    "target_patches_per_s",
    "stage2_patches_per_s",
    "head_trials_per_min",
)
"""Rates that belong to the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateFile:
    """What `mstar measure` writes.

    device: a key of the built-in table of devices, or `cpu`. encoder: whose rates those of the
    encoder and of stage 2 are.
    rates: those that were measured. notes: rate → how.
    """

    format: int
    mstar_version: str
    date: str
    machine: str
    device: str
    device_name: str
    encoder: str
    rates: "dict[str, float]"
    notes: "dict[str, str]"

    def __post_init__(self) -> None:
        """Refuses what another version wrote, or nobody measured."""
        if self.format != FORMAT:
            raise ConfigError(f"format: expected {FORMAT}, got {self.format}. Measure anew.")
        check_date("date", self.date)
        for name, value in self.rates.items():
            if name not in RATE_NAMES:
                raise ConfigError(
                    f"rates.{name}: expected one of {', '.join(RATE_NAMES)}; got an unknown one. "
                    "Correct the name."
                )
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value < 1e15
            ):
                raise ConfigError(
                    f"rates.{name}: expected a finite number above 0, got {value!r}. Measure anew."
                )


def write_rates(uri: str, found: RateFile) -> None:
    """Write a rate file, whole or not at all."""
    objects.write_whole(uri, (to_json(found) + "\n").encode())


def read_rates(uri: str) -> RateFile:
    """Read a rate file.

    Raises:
        ConfigError: it is not one; says which field, and the way out.
    """
    fields = read_json(uri, way_out=WAY_OUT)
    rates, notes = (_table(fields, name, uri) for name in ("rates", "notes"))
    plain = {name: value for name, value in fields.items() if name not in ("rates", "notes")}
    head = parse(_Head, plain, where=uri)
    try:
        return RateFile(**dataclasses.asdict(head), rates=rates, notes=notes)
    except ConfigError as error:
        raise ConfigError(f"{uri}: {error}") from None


def built_in(device: str) -> Rates:
    """The rates of the built-in table for a device.

    Raises:
        ConfigError: the table does not have it.
    """
    if device not in BY_DEVICE:
        raise ConfigError(
            f"gpu: expected one of {', '.join(BY_DEVICE)}, got {device!r}. Name the nearest one, "
            "and give your own rates (`mstar measure` on that machine, then --rates)."
        )
    return _assembled(BY_MACHINE | BY_DEVICE[device])


def rates_for(device: str, measured: RateFile | None) -> Rates:
    """The built-in rates of a device, with what was measured in their place."""
    rates = built_in(device)
    if measured is None:
        return rates
    usable = {
        name: float(value)
        for name, value in measured.rates.items()
        if name not in DEVICE_RATES or measured.device == device
    }
    origin = f"measured: {measured.machine}, {measured.device_name}, {measured.date}"
    sources = {**rates.sources, **{name: _note(origin, measured, name) for name in usable}}
    return dataclasses.replace(rates, **usable, sources=sources)


def left_out(device: str, measured: RateFile | None) -> list[str]:
    """Rates of a file that a plan for another device does not use."""
    if measured is None or measured.device == device:
        return []
    return [name for name in measured.rates if name in DEVICE_RATES]


def this_version() -> str:
    """Of mstar, as rate files record it."""
    return str(mstar.__version__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The fields of a rate file that are not tables."""

    format: int
    mstar_version: str
    date: str
    machine: str
    device: str
    device_name: str
    encoder: str


def _table(fields: Mapping[str, object], name: str, uri: str) -> dict[str, Any]:
    found = fields.get(name)
    if not isinstance(found, dict):
        raise ConfigError(
            f"{uri}: field {name!r}: expected an object {{…}}, got {found!r}. {WAY_OUT}"
        )
    return dict(found)


def _note(origin: str, measured: RateFile, name: str) -> str:
    note = measured.notes.get(name, "")
    return f"{origin}; {note}" if note else origin


def _assembled(figures: Mapping[str, Figure]) -> Rates:
    values = {name: figure.value for name, figure in figures.items()}
    sources = {name: f"{figure.kind}: {figure.source}" for name, figure in figures.items()}
    return Rates(**values, sources=sources)
