"""What every head takes and gives: bags packed one after another, never padded.

    x [row, dim]         the patch features of all bags of a batch
    offsets [bag + 1]    bag b is x[offsets[b] : offsets[b + 1]]

    head(x, offsets, labels) -> HeadOutput
    head(x, offsets, labels, genes) -> HeadOutput      heads that read gene expression too

A bag's numbers do not depend on the bags it is packed with. Offsets belong on the CPU: the sizes of
the bags are then known without waiting for a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.errors import ConfigError, FeatureError

CLASSIFICATION, SURVIVAL = "classification", "survival"
_SINGLE_OR_WIDER = (torch.float32, torch.float64)
_plain: ContextVar[bool] = ContextVar("plain", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOutput:
    """What a head makes of a batch.

    logits: class scores before the softmax; for survival, of the hazards of the time bins, or one
        risk; of a text, scores of the next token at each of its places.
    attention: weights of the patches, which sum to one in each bag; one column per class, or per
        group of genes, where the head has several; None where it has none.
    extra_loss: to be added to the loss in training; the mean over the bags of the batch.
    chunks: logits of the chunks of each bag, where the head cuts large bags into several: the loss
        of such a bag is the mean of its chunks' losses.
    """

    logits: Float[Tensor, "bag ..."]
    attention: Float[Tensor, " row"] | Float[Tensor, "row class"] | None = None
    extra_loss: Float[Tensor, ""] | None = None
    chunks: tuple[Float[Tensor, "_ output"], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneLayout:
    """What a head that reads genes is built for.

    genes: number of genes in the vocabulary. groups: number of genes in each group.
    digest: of the names of both, so that a trained head is not given other genes; may be empty.
    """

    genes: int
    groups: tuple[int, ...] = ()
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGenes:
    """Gene expression of the bags of a batch, and the groups in which its genes are read.

    values: logarithmic expression as stored, each gene of the vocabulary once; NaN: not measured.
    columns: of each group the places of its genes; a gene may be in several groups, or in none.
    """

    values: Float[Tensor, "bag gene"]
    columns: tuple[Int64[Tensor, " _"], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """A row of the table of heads.

    config: the dataclass of its options.
    build: makes it from (options, length of a feature vector, number of outputs); its weights are
        drawn from torch's global generator.
    attention: its output has attention.
    trained: by gradient; if not, it has `fit` (`FittedHead`).
    kinds: of task that it can be used for.
    genes: what it reads of gene expression: nothing, all genes, or groups of genes. One that reads
        any is a `GeneHead`, and `build` takes a `GeneLayout` as its fourth argument.
    """

    name: str
    config: type
    build: Callable[..., nn.Module]
    attention: bool
    trained: bool = True
    kinds: tuple[str, ...] = (CLASSIFICATION, SURVIVAL)
    genes: Literal["", "all", "groups"] = ""


@runtime_checkable
class FittedHead(Protocol):
    """A head without gradients: it looks at the training bags once."""

    def fit(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"],
    ) -> None:
        """Take in the whole training split."""


@runtime_checkable
class GeneHead(Protocol):
    """A head that takes `GroupedGenes` too; it is told once how genes spread over training."""

    def learn_genes(self, values: Float[Tensor, "case gene"]) -> None:
        """Take mean and spread of every gene from the cases of the training split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bags:
    """Where the bags of a packed batch lie.

    offsets: as given, on the rows' device. of_row: the bag of each row. sizes: rows of each bag.
    """

    offsets: Int64[Tensor, " edge"]
    of_row: Int64[Tensor, " row"]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        """How many bags."""
        return len(self.sizes)

    def cut(self, rows: Float[Tensor, "row dim"]) -> tuple[Float[Tensor, "_ dim"], ...]:
        """The rows of each bag."""
        return torch.split(rows, list(self.sizes))


def read_bags(x: Float[Tensor, "row dim"], offsets: Int64[Tensor, " edge"], input_dim: int) -> Bags:
    """Check a packed batch and see where its bags lie.

    Raises:
        FeatureError: features of another length, or offsets that do not cut x into bags.
    """
    if x.shape[1] != input_dim:
        raise FeatureError(
            f"the head was made for features of {input_dim} numbers, got {x.shape[1]}. Use the "
            "features of the encoder it was trained on."
        )
    sizes = offsets.diff().tolist()
    if not sizes or int(offsets[0]) != 0 or int(offsets[-1]) != len(x) or min(sizes) < 1:
        raise FeatureError(
            f"offsets: expected 0, rising, up to {len(x)} (the rows of x), got "
            f"{_shortened(offsets.tolist())}. Leave bags without patches out."
        )
    offsets = offsets.to(x.device)
    bags = torch.arange(len(sizes), device=x.device)
    of_row = torch.repeat_interleave(bags, offsets.diff(), output_size=len(x))
    return Bags(offsets=offsets, of_row=of_row, sizes=tuple(sizes))


def computable(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Stored half-precision rows as float32, unless autocast chooses the precision."""
    if x.dtype in _SINGLE_OR_WIDER or torch.is_autocast_enabled(x.device.type):
        return x
    return x.float()


@contextmanager
def plain_operations() -> Iterator[None]:
    """Leave out what heads do for a CPU's sake and `torch.func.vmap` cannot transform.

    The numbers are the same but for rounding, and for which patches dropout takes.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def made_for_cpu(x: Tensor) -> bool:
    """Whether a head may take the way that is fast on a CPU."""
    return x.device.type == "cpu" and not _plain.get()


def one_output(head: str, num_outputs: int) -> None:
    """Refuse several outputs for a head that gives one risk."""
    if num_outputs != 1:
        raise ConfigError(
            f"head {head}: it gives one risk, got {num_outputs} outputs. Use it with the Cox loss."
        )


def _shortened(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"{values[:4]} … {values[-3:]}"
