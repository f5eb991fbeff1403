"""The packed stream: which bags come when, and how they get into a float32 batch.

The order follows from (seed, fold, epoch) alone, so it is the same for every configuration, alone
or in a population, and after a restart. On a CPU a batch is copied into one buffer that is used
again and again (a fresh one costs a page fault every 4 KiB); on a GPU the bags stay resident where
they fit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor, nn

from mstar.data.bag_rows import sample_rows
from mstar.data.task_genes import TaskGenes
from mstar.downstream.bags import PackedBags
from mstar.downstream.config import POOLED_HEADS, TrialConfig
from mstar.features.files import cast_features
from mstar.models.heads import GeneHead, GeneLayout, GroupedGenes, HeadOutput
from mstar.training.seeds import seed_of

EVALUATION_ROWS = 8192  # rows packed into one evaluation step; a larger bag is a step of its own
BUCKET_BATCHES = 8  # a bucket: the bags of so many steps, sorted by length
RESIDENT_SHARE = 0.6  # of a GPU's free memory, for bags that stay there


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamKind:
    """What two configurations must agree in to share their batches."""

    batch_bags: int
    bucketed: bool
    max_patches: int
    pooled: bool

    @classmethod
    def of(cls, config: TrialConfig) -> "StreamKind":
        """The kind of a configuration's stream."""
        return cls(
            batch_bags=config.batch_bags,
            bucketed=config.bucketed,
            max_patches=config.max_patches,
            pooled=config.head in POOLED_HEADS and not config.max_patches,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Packed bags on the device.

    rows: positions in the part that the bags are of.
    x: valid until the next batch is asked for.
    offsets: on the CPU, so that nobody has to wait for a GPU to know the sizes.
    genes: of the bags' cases, in fusion tasks; heads that read none do not see them.
    """

    step: int
    rows: Int64[Tensor, " bag"]
    x: Float[Tensor, "row dim"]
    offsets: Int64[Tensor, " edge"]
    genes: GroupedGenes | None = None

    def through(
        self, head: nn.Module, labels: Int64[Tensor, "bag ..."] | None = None
    ) -> HeadOutput:
        """What a head says about the batch; labels are codes, or the tokens of texts."""
        more = (self.genes,) if isinstance(head, GeneHead) else ()
        output: HeadOutput = head(self.x, self.offsets, labels, *more)
        return output


def training_batches(
    sizes: Int64[np.ndarray, " bag"], kind: StreamKind, *, seed: int, fold: str, epoch: int
) -> list[Int64[np.ndarray, " _"]]:
    """The bags of each step of an epoch, as positions in the training part."""
    generator = np.random.default_rng(seed_of("order", seed, fold, epoch))
    order = generator.permutation(len(sizes))
    step = kind.batch_bags or len(sizes)
    if kind.bucketed and step > 1:
        spans = range(0, len(order), step * BUCKET_BATCHES)
        buckets = [order[start : start + step * BUCKET_BATCHES] for start in spans]
        order = np.concatenate([b[np.argsort(sizes[b], kind="stable")] for b in buckets])
    batches = [order[start : start + step] for start in range(0, len(order), step)]
    if kind.bucketed:
        batches = [batches[place] for place in generator.permutation(len(batches))]
    return batches


def evaluation_batches(sizes: Int64[np.ndarray, " bag"]) -> list[Int64[np.ndarray, " _"]]:
    """The bags in order, as many in a step as `EVALUATION_ROWS` hold."""
    batches: list[list[int]] = []
    filled = EVALUATION_ROWS
    for place, size in enumerate(sizes.tolist()):
        if filled + size > EVALUATION_ROWS:
            batches.append([])
            filled = 0
        batches[-1].append(place)
        filled += size
    return [np.asarray(batch, np.int64) for batch in batches]


def one_bag_each(num_bags: int) -> list[Int64[np.ndarray, " _"]]:
    """A step for every bag.

    What a head says of a bag is then the same to the bit whichever bags stand beside it: a matrix
    product rounds otherwise when it has other rows.
    """
    return [np.asarray([place], np.int64) for place in range(num_bags)]


def bag_batch(
    features: Float[np.ndarray, "row dim"],
    *,
    pooled: bool,
    genes: GroupedGenes | None = None,
    device: torch.device | str = "cpu",
) -> Batch:
    """A bag that is in no packed file, to the bit as a `BagSource` gives it.

    Raises:
        FeatureError: a number is not finite, or too large for float16.
    """
    stored = torch.from_numpy(np.ascontiguousarray(cast_features(features)))
    rows = stored.float().mean(0)[None] if pooled else stored.float()
    return Batch(
        step=0,
        rows=torch.zeros(1, dtype=torch.int64),
        x=rows.to(device),
        offsets=torch.tensor([0, len(rows)]),
        genes=genes,
    )


class BagSource:
    """Gives batches of some bags, on one device."""

    def __init__(
        self,
        bags: PackedBags,
        device: torch.device | str = "cpu",
        genes: TaskGenes | None = None,
    ) -> None:
        """Bags that fit are copied to a GPU once; gene expression (`TaskData.genes`) always."""
        self.device = torch.device(device)
        self.ids, self.dim = bags.ids, bags.dim
        self._offsets, self._x = bags.offsets, torch.from_numpy(np.asarray(bags.x))
        self._buffer = torch.empty(0, bags.dim)
        self._means: Tensor | None = None
        self.layout: GeneLayout | None = None
        if genes is not None:
            self._read_genes(genes)
        if self.device.type == "cuda" and _fits(self._x, self.device):
            self._x = self._x.to(self.device)

    def sizes(
        self, places: Int64[np.ndarray, " bag"], *, pooled: bool = False
    ) -> Int64[np.ndarray, " bag"]:
        """Rows of some bags."""
        if pooled:
            return np.ones(len(places), np.int64)
        found: Int64[np.ndarray, " bag"] = np.diff(self._offsets)[places]
        return found

    def batches(
        self,
        places: Int64[np.ndarray, " bag"],
        plan: Sequence[Int64[np.ndarray, " _"]],
        *,
        pooled: bool = False,
        max_patches: int = 0,
        draw: tuple[int, int] = (0, 0),
    ) -> Iterator[Batch]:
        """The batches of a plan.

        Args:
            places: the bags of the part.
            plan: positions in `places`, for each step.
            pooled: give each bag's mean in place of its rows.
            max_patches: rows of a bag at most, drawn by (seed, epoch) and the case; 0 for all.
            draw: that seed and epoch.
        """
        for step, rows in enumerate(plan):
            taken = places[rows]
            if pooled:
                x, sizes = self.means()[torch.from_numpy(taken).to(self.device)], [1] * len(rows)
            else:
                x, sizes = self._packed(taken, max_patches, draw)
            offsets = torch.tensor([0, *np.cumsum(sizes).tolist()])
            yield Batch(
                step=step,
                rows=torch.from_numpy(rows),
                x=x,
                offsets=offsets,
                genes=self._genes_of(taken),
            )

    def genes_at(self, places: Int64[np.ndarray, " bag"]) -> Float[Tensor, "bag gene"]:
        """Logarithmic gene expression of some bags' cases."""
        assert self.layout is not None
        found: Tensor = self._genes[torch.from_numpy(places).to(self.device)]
        return found

    def _read_genes(self, genes: TaskGenes) -> None:
        values = genes.values()
        self._genes = torch.from_numpy(values).to(self.device)
        self._columns = tuple(torch.from_numpy(own).to(self.device) for own in genes.columns)
        sizes = tuple(len(own) for own in genes.columns)
        self.layout = GeneLayout(genes=values.shape[1], groups=sizes, digest=genes.layout)

    def _genes_of(self, taken: Int64[np.ndarray, " bag"]) -> GroupedGenes | None:
        if self.layout is None:
            return None
        return GroupedGenes(values=self.genes_at(taken), columns=self._columns)

    def means(self) -> Float[Tensor, "bag dim"]:
        """The mean of every bag, made once."""
        if self._means is None:
            spans = zip(self._offsets[:-1].tolist(), self._offsets[1:].tolist(), strict=True)
            means = [self._x[start:stop].float().mean(0) for start, stop in spans]
            self._means = torch.stack(means).to(self.device)
        return self._means

    def _packed(
        self, taken: Int64[np.ndarray, " bag"], max_patches: int, draw: tuple[int, int]
    ) -> tuple[Float[Tensor, "row dim"], list[int]]:
        parts = [self._rows(place, max_patches, draw) for place in taken.tolist()]
        sizes = [len(part) for part in parts]
        x = self._room(sum(sizes))
        start = 0
        for part in parts:
            x[start : start + len(part)].copy_(part)
            start += len(part)
        return x, sizes

    def _rows(self, place: int, max_patches: int, draw: tuple[int, int]) -> Float16[Tensor, "_ d"]:
        start, stop = int(self._offsets[place]), int(self._offsets[place + 1])
        if not max_patches or stop - start <= max_patches:
            return self._x[start:stop]
        seed, epoch = draw
        rows = sample_rows(
            stop - start, max_patches, seed=seed, case_id=self.ids[place], epoch=epoch
        )
        return self._x[start + torch.from_numpy(rows).to(self._x.device)]

    def _room(self, rows: int) -> Float[Tensor, "row dim"]:
        if len(self._buffer) < rows:
            self._buffer = torch.empty(rows, self.dim, device=self.device)
        return self._buffer[:rows]


def _fits(x: Tensor, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return x.numel() * x.element_size() <= RESIDENT_SHARE * free
