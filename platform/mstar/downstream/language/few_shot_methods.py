"""How each few-shot method learns from a draw, and what it then says of the test part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mstar.data.task_data import TaskData, TaskFold
from mstar.downstream.bags import PackedBags
from mstar.downstream.config import TrialConfig
from mstar.downstream.evaluate import predict
from mstar.downstream.family_job import FamilyJob
from mstar.downstream.language.encoders import PatchSide, TextSide
from mstar.downstream.language.few_shot_models import (
    Key,
    Learnt,
    linear_logits,
    prototype_scores,
)
from mstar.downstream.language.prompts import find_prompts
from mstar.downstream.language.zero_shot import class_vectors, wordings_of
from mstar.downstream.population import train_population
from mstar.downstream.stream import BagSource
from mstar.downstream.trainer import Fit
from mstar.errors import TrainingError

Draws = Mapping[Key, Int64[np.ndarray, " support"]]
Scores = dict[Key, Float32[np.ndarray, "sample label"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a method says after every draw, and the models of the k that is kept."""

    scores: Scores = field(default_factory=dict)
    models: dict[Key, Learnt] = field(default_factory=dict)


def prototypes(job: FamilyJob, bags: PackedBags, draws: Draws, keep: int) -> Told:
    """The paper's: the patches most like the class's text make the class."""
    options, data = job.options, job.data
    side = PatchSide(
        job.sources.stage1, job.sources.stage2, space=options.space, window=options.window,
        device=job.device,
    )  # fmt: skip
    texts = _class_texts(job)
    labels = _labels(data)
    best = {
        at: _most_alike(side.vectors(bags.bag(at)), texts[labels[at]], options.patches)
        for at in sorted({at for own in draws.values() for at in own.tolist()})
    }
    keys = list(draws)
    made = torch.stack([_prototypes(draws[key], labels, best, options.patches) for key in keys])
    rows = [
        prototype_scores(side.vectors(bags.bag(at)), made, options.top)
        for at in data.folds[0].test.tolist()
    ]
    scores = torch.softmax(torch.stack(rows) * options.scale, dim=2).cpu().numpy()
    return Told(
        scores={key: scores[:, place] for place, key in enumerate(keys)},
        models={
            key: {"prototypes": own.cpu()}
            for key, own in zip(keys, made, strict=True)
            if key[0] == keep
        },
    )


def linear(job: FamilyJob, bags: PackedBags, draws: Draws, keep: int) -> Told:
    """Logistic regression of mean features."""
    means = BagSource(bags).means().double()
    labels, test = torch.from_numpy(_labels(job.data)), job.data.folds[0].test
    num_classes = len(job.data.class_names)
    told = Told()
    for key, own in draws.items():
        rows = torch.from_numpy(own)
        weight, bias = logistic(means[rows], labels[rows], num_classes, l2=job.options.l2)
        logits = linear_logits(means[torch.from_numpy(test)], weight, bias)
        told.scores[key] = logits.softmax(dim=1).float().numpy()
        if key[0] == keep:
            told.models[key] = {"weight": weight, "bias": bias}
    return told


def abmil(job: FamilyJob, bags: PackedBags, draws: Draws, keep: int) -> Told:
    """ABMIL by the one training loop."""
    source = BagSource(bags, job.device)
    config = TrialConfig(head="abmil", epochs=job.options.epochs, lr=job.options.lr)
    told = Told()
    for (k, draw), own in draws.items():
        data = only_from(job.data, own, name=f"k{k}")
        (fit,) = train_population(
            data, bags, [config], seed=draw + 1, device=job.device, source=source,
            make_fit=LastEpoch,
        )  # fmt: skip
        if fit.failed:
            raise TrainingError(f"{job.study.key}: k {k}, draw {draw}: {fit.failed}")
        told.scores[k, draw] = predict(fit, source, job.data.folds[0].test)
        if k == keep:
            told.models[k, draw] = fit
    return told


METHODS: dict[str, Callable[[FamilyJob, PackedBags, Draws, int], Told]] = {
    "few_prototype": prototypes,
    "few_linear": linear,
    "few_abmil": abmil,
}


class LastEpoch(Fit):
    """Keeps the model of the last epoch: there is no validation part to choose another by."""

    def _score(self, scores: Float[np.ndarray, "sample score"]) -> float:
        del scores
        return float(len(self._history))


def only_from(data: TaskData, support: Int64[np.ndarray, " support"], *, name: str) -> TaskData:
    """The task with nothing but some slides to train on; the loop validates on them too."""
    fold = TaskFold(name=name, train=support, val=support, test=data.folds[0].test)
    return replace(data, task=replace(data.task, kind="classification"), folds=(fold,))


def logistic(
    x: Float64[Tensor, "slide dim"], labels: Int64[Tensor, " slide"], num_classes: int, *, l2: float
) -> tuple[Float64[Tensor, "dim label"], Float64[Tensor, " label"]]:
    """Penalised logistic regression on vectors centred and divided by their mean length.

    The weights lie in the span of the few slides, so they are looked for there. Returned are weight
    and bias for the vectors as they are.
    """
    centre = x.mean(0)
    size = (x - centre).norm(dim=1).mean().clamp(min=1e-12)
    _, _, ways = torch.linalg.svd((x - centre) / size, full_matrices=False)
    inside = (x - centre) / size @ ways.T
    weights = torch.zeros(len(ways), num_classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = cross_entropy(inside @ weights + bias, labels, reduction="sum")
        total: Tensor = error + l2 / 2 * weights.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weight = ways.T @ weights.detach() / size
    return weight, bias.detach() - centre @ weight


def _labels(data: TaskData) -> Int64[np.ndarray, " sample"]:
    return np.array([-1 if s.label is None else s.label for s in data.samples], np.int64)


def _class_texts(job: FamilyJob) -> Float32[Tensor, "label dim"]:
    """The unit vector of each class's prompts, all of them together."""
    found = find_prompts(job.data.task, job.sources.prompts)
    side = TextSide(job.sources.stage1, job.device)
    texts = [sentence.text for sentence in found.sentences()]
    ids = side.token_ids(texts, [f"{found.uri}: prompt {text!r}" for text in texts])
    ensemble = wordings_of(found, seed=0)[:1]
    return torch.from_numpy(class_vectors(side.vectors(ids), ensemble)[0]).to(job.device)


def _most_alike(
    patches: Float32[Tensor, "patch dim"], text: Float32[Tensor, " dim"], count: int
) -> tuple[Float32[Tensor, "best dim"], Float32[Tensor, " best"]]:
    """A slide's patches most like a text, and how alike they are."""
    alike = patches @ text
    best = alike.topk(min(count, len(patches)))
    return patches[best.indices], best.values


def _prototypes(
    support: Int64[np.ndarray, " support"],
    labels: Int64[np.ndarray, " sample"],
    best: Mapping[int, tuple[Tensor, Tensor]],
    count: int,
) -> Float32[Tensor, "label dim"]:
    """Of each class, the mean of its slides' patches that are most like its text."""
    made = []
    for code in range(int(labels.max()) + 1):
        own = [best[at] for at in support.tolist() if labels[at] == code]
        patches = torch.cat([rows for rows, _ in own])
        alike = torch.cat([values for _, values in own])
        made.append(patches[alike.topk(min(count, len(alike))).indices].mean(0))
    return normalize(torch.stack(made), dim=1)
