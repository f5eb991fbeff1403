"""`mstar measure`: how fast this machine is, as a small file for `mstar plan --rates`.

Each rate is what a loop of some seconds gives on one core or on the device at hand; the file says
on which machine, when, and how. What cannot be measured here is left out: the plan then takes the
built-in table's number and says so.
"""

import datetime
import platform
from collections.abc import Iterator
from dataclasses import dataclass

from mstar.cli import measure_models as models
from mstar.cli.measure_clock import Rate
from mstar.cli.measure_reading import reading
from mstar.cli.measure_storage import storage
from mstar.errors import ConfigError
from mstar.planning.built_in import BY_DEVICE
from mstar.planning.rates import FORMAT, RateFile, this_version, write_rates
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureConfig:
    """What to measure, and for how long."""

    out: str = "rates.json"
    """File for the rates."""
    seconds: float = 4.0
    """Seconds that each of about eight loops takes; those of large models take a batch at least."""
    slides: str | None = None
    """Slides of yours to read from (the first three): better than the made-up one. Only they tell
    what opening a slide takes."""
    encoder: str = "mstar"
    """Encoder whose rate is measured, with random weights: they cost what trained ones cost."""
    device: str = "auto"
    """Where the encoder runs: auto, cpu or cuda."""
    batch_size: int = 0
    """Patches of a batch; 0: 256 on a GPU, 4 on a CPU."""
    compile: bool = False
    """Compile the encoder, as `mstar embed --compile` does (minutes)."""
    storage: str = ""
    """s3://bucket/folder to read from: a probe of 32 MB is written there, read and deleted."""
    only: tuple[str, ...] = ()
    """Only some of read, encode, train, aggregate, heads, storage; default: all that can be."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"--seconds {self.seconds:g}: expected above 0, up to 600")
        if self.storage and objects.is_local(self.storage):
            raise ConfigError(f"--storage {self.storage}: expected s3://bucket/folder")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device {self.device}: expected auto, cpu or cuda")
        for name in self.only:
            if name not in STEPS:
                raise ConfigError(f"--only {name}: expected some of {', '.join(STEPS)}")
        if "storage" in self.only and not self.storage:
            raise ConfigError("--only storage: expected --storage s3://bucket/folder beside it")


STEPS = ("read", "encode", "train", "aggregate", "heads", "storage")


def run(config: MeasureConfig) -> int:
    """Measure, print, write; returns the exit code."""
    found: dict[str, Rate] = {}
    for rate in measured(config):
        found[rate.name] = rate
        print(f"{rate.name:<27}{rate.value:>12.5g}  {rate.note}", flush=True)
    device, device_name = device_of(config)
    file = RateFile(
        format=FORMAT,
        mstar_version=this_version(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine_name(),
        device=device,
        device_name=device_name,
        encoder=config.encoder,
        rates={name: rate.value for name, rate in found.items()},
        notes={name: rate.note for name, rate in found.items()},
    )
    write_rates(config.out, file)
    print(f"{len(found)} rates of {file.machine}, {device_name} → {config.out}")
    print(f"mstar plan --rates {config.out} --gpu {device} …")
    return ExitCode.COMPLETE


def measured(config: MeasureConfig) -> Iterator[Rate]:
    """The rates, as they are found."""
    wanted = [name for name in STEPS if not config.only or name in config.only]
    on_gpu = models.is_cuda(config.device)
    if "read" in wanted:
        yield from reading(config.slides, config.encoder, config.seconds)
    if {"encode", "train"} & set(wanted):
        encoder = models.EncoderUnderTest(
            name=config.encoder,
            device="cuda" if on_gpu else "cpu",
            batch_size=config.batch_size or (256 if on_gpu else 4),
            compiled=config.compile,
        )
        rate = models.encoding(encoder, config.seconds)
        if "encode" in wanted:
            yield rate
        if "train" in wanted:
            yield from models.training(encoder, rate.value, config.seconds)
    if "aggregate" in wanted:
        yield models.aggregating("cuda" if on_gpu else "cpu", config.seconds)
    if "heads" in wanted:
        yield models.heads("cuda" if on_gpu else "cpu", config.seconds)
    if "storage" in wanted and config.storage:
        yield from storage(config.storage, config.seconds)


def device_of(config: MeasureConfig) -> tuple[str, str]:
    """The device as the plan calls it, and as its maker does."""
    if not models.is_cuda(config.device):
        return "cpu", f"one core of {models.cpu_name()}"
    name = models.gpu_name()
    plain = name.lower().replace(" ", "")
    known = [key for key in BY_DEVICE if key != "cpu" and key.replace("-", "") in plain]
    if "h100" in plain and "pcie" in plain:
        known = ["h100-pcie"]
    return (known[0] if known else plain), name


def machine_name() -> str:
    """Of the machine: its processor, not its address."""
    return f"{models.cpu_name()}, {platform.system()} {platform.machine()}"
