"""Vectors of samples. Memory is bounded by a window, however many patches a slide has.

A bag of more patches than the aggregator was trained on at once goes through it in windows, each of
a random share of the patches (the same ones in every run), and the unit vectors of the windows are
averaged. An aggregator in `public` mode was trained on bags of one size, smaller ones filled up
with their mean, which counts; so windows are filled up in the same way here.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import normalize

from mstar.data.bags import BagConfig, BagReader
from mstar.data.reports import read_reports
from mstar.data.rna.store import ExpressionStore
from mstar.downstream.encode_config import EncodeConfig
from mstar.downstream.encode_samples import Sample, Table
from mstar.downstream.language.encoders import GeneSide, TextSide, check_dim
from mstar.errors import ConfigError
from mstar.features.store import FeatureStore
from mstar.models.exports import AGGREGATOR, GENE_ENCODER, TEXT_ENCODER, read_export
from mstar.models.stage1_files import load_aggregator
from mstar.storage import objects

PAPER_BAG = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """The vector of a sample.

    patches: that went into it; 0 for what has none.
    windows: that they were dealt out into.
    """

    vector: Float32[np.ndarray, " dim"]
    patches: int = 0
    windows: int = 0


class SlideEncoder:
    """Slides or cases to vectors, by a frozen aggregator."""

    def __init__(self, config: EncodeConfig) -> None:
        """Load the aggregator.

        Raises:
            WeightsError: it cannot be read.
            ConfigError: the window is not that of stage 1 although its padding counts.
        """
        self._config = config
        self._device = device_of(config.device)
        self._aggregator = load_aggregator(config.aggregator).to(self._device)
        self.window, self.trained = _window(config, self._aggregator.config.mode)
        self.padded = self.window if self._aggregator.config.mode == "public" else 0
        bags = BagConfig(size=self.window, seed=config.seed, fill="masked")
        self._reader = BagReader(config.features, bags)

    def __call__(self, samples: Sequence[Sample]) -> list[Encoded | Exception]:
        """The vector of each sample, or why it has none."""
        return [self._tried(sample) for sample in samples]

    def _tried(self, sample: Sample) -> Encoded | Exception:
        try:
            return self._encoded(sample)
        except Exception as error:  # one slide's trouble, whatever it is, must not end the rest
            return error

    def _encoded(self, sample: Sample) -> Encoded:
        owner = sample.case_id or sample.name
        if self._config.long_bags == "subset":
            bag = self._reader.read(owner, sample.slides)
            rows = [bag.features[bag.mask]]
        else:
            windows = self._reader.windows(owner, sample.slides)
            rows = (bag.features for bag in windows)  # type: ignore[assignment]
        patches = windows_done = 0
        total: Tensor | None = None
        for part in rows:
            vector = self._vector(part)
            total = vector if total is None else total + vector
            patches, windows_done = patches + len(part), windows_done + 1
        assert total is not None, "an empty bag is an error of the reader"
        mean = total / windows_done
        mean = normalize(mean, dim=0) if self._config.scale == "unit" else mean
        return Encoded(vector=mean.cpu().numpy(), patches=patches, windows=windows_done)

    @torch.no_grad()
    def _vector(self, rows: Float[np.ndarray, "patch feature"]) -> Float32[Tensor, " dim"]:
        """The slide vector of one window."""
        check_dim(rows.shape[1], self._aggregator.config.input_dim, "the aggregator")
        num, size = len(rows), max(self.padded, len(rows))
        bag = torch.zeros(1, size, rows.shape[1], device=self._device)
        bag[0, :num] = torch.from_numpy(rows)
        mask = torch.arange(size, device=self._device)[None] < num
        slide = self._aggregator(bag, None if num == size else mask).slide[0].float()
        several = self._config.scale == "unit"
        return normalize(slide, dim=0) if several else slide


class ReportEncoder:
    """Reports to vectors."""

    def __init__(self, config: EncodeConfig) -> None:
        """Load text encoder, tokenizer and reports."""
        self._reports = read_reports(objects.join(config.cohort, "reports.csv"))
        self._side = TextSide(config.aggregator, str(device_of(config.device)))

    def __call__(self, samples: Sequence[Sample]) -> list[Encoded | Exception]:
        """The vector of each report, or why it has none."""
        made: list[Encoded | Exception] = []
        for sample in samples:
            try:
                ids = self._side.token_ids([self._reports[sample.key].text], [sample.name])
                made.append(Encoded(vector=self._side.vectors(ids)[0]))
            except (KeyError, ConfigError) as error:
                made.append(error)
        return made


class RnaEncoder:
    """Rows of RNA to vectors."""

    def __init__(self, config: EncodeConfig) -> None:
        """Load the gene encoder and the expression store."""
        self._store = ExpressionStore.open(objects.join(config.cohort, "expression"))
        self._side = GeneSide(config.aggregator, device=str(device_of(config.device)))

    def __call__(self, samples: Sequence[Sample]) -> list[Encoded | Exception]:
        """The vector of each row, or why it has none."""
        bad: dict[str, Exception] = {
            sample.name: ConfigError(f"{sample.key}: not in the expression store")
            for sample in samples
            if sample.key not in self._store
        }
        for sample in samples:
            if sample.key in self._store.zero_cases:
                bad[sample.name] = ConfigError(f"{sample.key}: its expression is zero throughout")
        good = [sample for sample in samples if sample.name not in bad]
        rows: Any = self._side.vectors(self._store, [sample.key for sample in good]) if good else []
        found = {one.name: Encoded(vector=row) for one, row in zip(good, rows, strict=True)}
        return [found.get(sample.name) or bad[sample.name] for sample in samples]


SampleEncoder = Callable[[Sequence[Sample]], list[Encoded | Exception]]
_ENCODERS: dict[str, Callable[[EncodeConfig], SampleEncoder]] = {
    "wsi": SlideEncoder,
    "text": ReportEncoder,
    "gene": RnaEncoder,
}


def encoder_of(config: EncodeConfig, table: Table) -> SampleEncoder:
    """What encodes the samples of a table."""
    made: SampleEncoder = _ENCODERS[table.modality](config)
    return made


def provenance_of(config: EncodeConfig, table: Table) -> dict[str, Any]:
    """What made the vectors of a table: settings, and digests of all that went in."""
    made: dict[str, Any] = {"modality": table.modality}
    made |= config.settings_of(table.modality)
    kind = {"wsi": AGGREGATOR, "text": TEXT_ENCODER, "gene": GENE_ENCODER}[table.modality]
    export = read_export(config.aggregator, kind)
    made["encoder_sha256"] = hashlib.sha256(objects.read_bytes(export.uri)).hexdigest()
    made["stage1_fingerprint"] = export.record.get("provenance", {}).get("fingerprint", "")
    if table.modality == "wsi":
        store = FeatureStore.open(config.features)
        made["features_fingerprint"] = store.fingerprint
        made["features_config"] = store.record.config
    elif table.modality == "text":
        made["reports"] = read_reports(objects.join(config.cohort, "reports.csv")).digest
    else:
        made["expression"] = ExpressionStore.open(objects.join(config.cohort, "expression")).digest
    return made


def device_of(name: str) -> torch.device:
    """The device of a flag value."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _window(config: EncodeConfig, mode: str) -> tuple[int, int | None]:
    """Patches of a window, and those of stage 1's bags as far as the export says so."""
    export = read_export(config.aggregator, AGGREGATOR)
    trained = export.record.get("provenance", {}).get("config", {}).get("bag_patches")
    if config.window is not None and mode == "public" and trained not in (None, config.window):
        raise ConfigError(
            f"--window {config.window}: expected {trained}, the bag size that {export.uri} was "
            "trained with: its padding counts. Leave --window out."
        )
    return config.window or trained or PAPER_BAG, trained
