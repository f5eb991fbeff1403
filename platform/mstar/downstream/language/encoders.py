"""The encoders that text, slides and RNA go through, loaded from what stage 1 and 2 left behind.

All vectors have the length of the shared space and are of unit length. Nothing is trained.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from mstar.data.report_tokens import ReportTokenizer
from mstar.data.rna.binning import BinningConfig, bin_expression
from mstar.data.rna.store import ExpressionStore
from mstar.downstream.language.options import SPACES
from mstar.errors import CohortError, ConfigError, WeightsError
from mstar.models.aggregator import Aggregator
from mstar.models.exports import GENE_ENCODER, read_export
from mstar.models.projection import PROJECTION, load_projection
from mstar.models.stage1_files import load_aggregator, load_gene_encoder, load_text_encoder
from mstar.storage import objects
from mstar.training.seeds import seed_of

TOKENIZER = "tokenizer"
FACTS = "stage1.json"
TEXTS_AT_ONCE = 32
PATCHES_AT_ONCE = 65_536
_DEFAULT_TOKENS = 512


class TextSide:
    """Texts to unit vectors."""

    def __init__(self, stage1: str, device: str = "cpu") -> None:
        """Load the text encoder and its tokenizer.

        Raises:
            WeightsError: the folder holds none.
        """
        self.device = torch.device(device)
        self.tokenizer = ReportTokenizer(
            objects.join(stage1, TOKENIZER), max_tokens=max_tokens(stage1)
        )
        self.encoder = load_text_encoder(stage1).to(self.device)

    def token_ids(
        self, texts: Sequence[str], names: Sequence[str]
    ) -> list[Int64[np.ndarray, " _"]]:
        """The tokens of texts.

        Raises:
            ConfigError: a text has none; says which by its name, never shows it.
        """
        found = self.tokenizer.token_ids(texts)
        empty = [name for name, ids in zip(names, found, strict=True) if not len(ids)]
        if empty:
            raise ConfigError(
                f"{empty[0]}: expected a text of one token or more, got none (the tokenizer of "
                f"stage 1 finds nothing in it); {len(empty):,} like this. Correct or remove it."
            )
        return found

    @torch.no_grad()
    def vectors(self, ids: Sequence[Int64[np.ndarray, " _"]]) -> Float32[np.ndarray, "text dim"]:
        """Unit vectors of texts that `token_ids` has made, the first window of each."""
        rows = []
        for start in range(0, len(ids), TEXTS_AT_ONCE):
            batch = self.tokenizer.collate(ids[start : start + TEXTS_AT_ONCE], trim=True)
            found = self.encoder(
                torch.from_numpy(batch.input_ids).to(self.device),
                torch.from_numpy(batch.attention_mask).to(self.device),
            )
            rows.append(normalize(found.float(), dim=1).cpu().numpy())
        made: Float32[np.ndarray, "text dim"] = np.concatenate(rows)
        return made

    def unknown_share(self, ids: Sequence[Int64[np.ndarray, " _"]]) -> float:
        """Share of the tokens that the vocabulary does not know."""
        every = np.concatenate(list(ids))
        return float((every == self.tokenizer.unk_id).mean())


class PatchSide:
    """Patch features to unit vectors in the space of text.

    space: projection or tokens.
    """

    def __init__(
        self,
        stage1: str,
        stage2: str,
        *,
        space: str = "auto",
        window: int = 4096,
        device: str = "cpu",
    ) -> None:
        """Load the projection of stage 2, or the aggregator of stage 1.

        Raises:
            ConfigError: the projection is asked for and --stage2 is not given.
            WeightsError: the folder does not hold what it should.
        """
        assert space in SPACES
        if space == "projection" and not stage2:
            raise ConfigError("space projection: expected --stage2, the folder of its projection.")
        self.space = "projection" if stage2 and space == "auto" else space.replace("auto", "tokens")
        self.device, self.window = torch.device(device), window
        self.projection: nn.Linear | None = None
        self.aggregator: Aggregator | None = None
        if self.space == "projection":
            with local_file(objects.join(stage2, PROJECTION)) as path:
                self.projection = load_projection(path).to(self.device)
        else:
            self.aggregator = load_aggregator(stage1).to(self.device)

    @property
    def input_dim(self) -> int:
        """Length of the features that it takes."""
        if self.projection is not None:
            return self.projection.in_features
        assert self.aggregator is not None
        return self.aggregator.config.input_dim

    @torch.no_grad()
    def vectors(self, bag: Float[np.ndarray, "patch feature"]) -> Float32[Tensor, "patch dim"]:
        """Unit vectors of a bag's patches, in their order, on the device."""
        check_dim(bag.shape[1], self.input_dim, self.space)
        if self.projection is not None:
            rows = [
                self.projection(torch.from_numpy(part.astype(np.float32)).to(self.device))
                for part in np.array_split(bag, -(-len(bag) // PATCHES_AT_ONCE))
            ]
            return normalize(torch.cat(rows), dim=1)
        return self._tokens(bag)

    def _tokens(self, bag: Float[np.ndarray, "patch feature"]) -> Float32[Tensor, "patch dim"]:
        """The aggregator's patch tokens; a larger bag is dealt out into windows of even size."""
        assert self.aggregator is not None
        parts = -(-len(bag) // self.window)
        dim = self.aggregator.config.dim
        made = torch.empty(len(bag), dim, device=self.device)
        for part in range(parts):
            rows = torch.from_numpy(bag[part::parts].astype(np.float32)).to(self.device)
            made[part::parts] = self.aggregator(rows[None]).patches[0].float()
        return normalize(made, dim=1)


class SlideSide:
    """Bags to unit slide vectors."""

    def __init__(self, stage1: str, *, window: int = 4096, device: str = "cpu") -> None:
        """Load the aggregator.

        Raises:
            WeightsError: the folder holds none.
        """
        self.device, self.window = torch.device(device), window
        self.aggregator = load_aggregator(stage1).to(self.device)

    @torch.no_grad()
    def vector(self, bag: Float[np.ndarray, "patch feature"], name: str) -> Float32[Tensor, " dim"]:
        """The slide vector of a bag; of a larger one than the window, of a draw by its name."""
        check_dim(bag.shape[1], self.aggregator.config.input_dim, "the aggregator")
        if len(bag) > self.window:
            rng = np.random.default_rng(seed_of("slide vector", name))
            bag = bag[np.sort(rng.permutation(len(bag))[: self.window])]
        rows = torch.from_numpy(bag.astype(np.float32)).to(self.device)
        return normalize(self.aggregator(rows[None]).slide[0].float(), dim=0)


class GeneSide:
    """RNA rows to unit vectors."""

    def __init__(self, stage1: str, *, batch: int = 8, device: str = "cpu") -> None:
        """Load the gene encoder, with the bins that its training cases gave.

        Raises:
            WeightsError: the folder holds none, or does not say how values were binned.
        """
        self.device, self.batch = torch.device(device), batch
        encoder, self.genes = load_gene_encoder(stage1)
        self.encoder = encoder.to(self.device)
        self.binning = binning_of(stage1)

    @torch.no_grad()
    def vectors(
        self, store: ExpressionStore, case_ids: Sequence[str]
    ) -> Float32[np.ndarray, "case dim"]:
        """Unit vectors of cases, by their rows in the store.

        Raises:
            CohortError: the store has other genes, or other ones first.
        """
        if tuple(store.genes) != self.genes:
            raise CohortError(
                f"{store.folder}: expected the {len(self.genes):,} genes of the gene encoder in "
                f"their order, got {len(store.genes):,}. Build the expression with its genes."
            )
        rows = []
        for start in range(0, len(case_ids), self.batch):
            values = store.rows(case_ids[start : start + self.batch])
            ids = torch.from_numpy(bin_expression(values, self.binning)).to(self.device)
            rows.append(normalize(self.encoder(ids).float(), dim=1).cpu().numpy())
        made: Float32[np.ndarray, "case dim"] = np.concatenate(rows)
        return made


def max_tokens(stage1: str) -> int:
    """The length of texts that stage 1 was trained with."""
    found = _facts(stage1).get("tokenizer") or {}
    return int(found.get("max_tokens", _DEFAULT_TOKENS))


def binning_of(stage1: str) -> BinningConfig:
    """How the gene encoder's values were binned."""
    export = read_export(stage1, GENE_ENCODER)
    provenance: dict[str, Any] = dict(export.record.get("provenance", {}))
    if "binning" in provenance:
        found = dict(provenance["binning"])
        return BinningConfig(**{**found, "edges": tuple(found["edges"])})
    config = provenance.get("config", {})
    if config.get("binning", "floor_clip") != "floor_clip":
        raise WeightsError(
            f"{export.uri}: expected the edges of its quantile bins, got none: it is of an older "
            "mstar. Run `mstar stage1` again."
        )
    return BinningConfig(num_bins=int(config.get("num_bins", BinningConfig().num_bins)))


def check_dim(found: int, expected: int, what: str) -> None:
    """Raises WeightsError when features are not those that a part takes."""
    if found != expected:
        raise WeightsError(
            f"{what} takes features of {expected} numbers, got {found}. Give the features of the "
            "encoder that stages 1 and 2 were run with."
        )


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """A file on this machine, or a copy of it for as long as the block runs.

    Raises:
        WeightsError: there is none.
    """
    if not objects.exists(uri):
        raise WeightsError(f"{uri}: there is no such file. Give the folder that a stage wrote.")
    if objects.is_local(uri):
        yield objects.local_path(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, uri.rpartition("/")[2])
        path.write_bytes(objects.read_bytes(uri))
        yield path


def _facts(stage1: str) -> dict[str, Any]:
    uri = objects.join(stage1, FACTS)
    if not objects.exists(uri):
        return {}
    found: dict[str, Any] = json.loads(objects.read_bytes(uri))
    return found
