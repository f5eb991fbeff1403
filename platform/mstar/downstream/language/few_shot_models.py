"""What few-shot studies learn, kept for slides that come later: the study's k, every draw.

few_prototype, few_linear    models/few_shot.safetensors: all draws in one file
few_abmil                    models/<fold>-s<draw>.safetensors: heads as any other
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, Float32
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mstar.config import to_dict
from mstar.downstream.evaluate import run_name
from mstar.downstream.family_job import FamilyJob
from mstar.downstream.language.encoders import PatchSide
from mstar.downstream.language.pooling import text_scores
from mstar.downstream.model_files import SUFFIX, save_fit
from mstar.downstream.trainer import FitResult
from mstar.errors import WeightsError
from mstar.storage import objects

Key = tuple[int, int]  # k, number of the draw
Learnt = FitResult | Mapping[str, Tensor]
FILE = "few_shot.safetensors"
_METADATA = "mstar_few_shot"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FewShotModel:
    """All draws of a study's k.

    tensors: prototypes [draw, label, dim]; or weight [draw, dim, label] and bias [draw, label].
    top, scale: of prototypes, as they were scored.
    """

    uri: str
    method: str
    classes: tuple[str, ...]
    k: int
    tensors: Mapping[str, Tensor]
    digest: str
    top: int = 0
    scale: float = 1.0

    @property
    def draws(self) -> int:
        """How many models there are."""
        return len(next(iter(self.tensors.values())))

    @property
    def input_dim(self) -> int:
        """Length of the features that regressions take; of the vectors that prototypes are."""
        linear = self.method == "few_linear"
        shape = self.tensors["weight"].shape[1:] if linear else self.tensors["prototypes"].shape[2:]
        return int(shape[0])

    def scores(
        self, bag: Float16[np.ndarray, "patch dim"], side: PatchSide | None
    ) -> Float32[np.ndarray, "draw label"]:
        """Each draw's probabilities of a slide; prototypes need what its patches go through."""
        if self.method == "few_linear":
            mean = torch.from_numpy(bag).float().mean(0).double()
            pairs = zip(self.tensors["weight"], self.tensors["bias"], strict=True)
            logits = [linear_logits(mean[None], *pair)[0] for pair in pairs]
            return torch.stack(logits).softmax(dim=1).float().numpy()
        assert side is not None
        said = prototype_scores(side.vectors(bag), self.tensors["prototypes"], self.top)
        return torch.softmax(said * self.scale, dim=1).cpu().numpy()


def linear_logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of mean features, in double precision."""
    return x @ weight + bias


def prototype_scores(
    vectors: Float32[Tensor, "patch dim"], prototypes: Float32[Tensor, "draw label dim"], top: int
) -> Float32[Tensor, "draw label"]:
    """The mean cosine of a slide's best patches with each prototype."""
    made = prototypes.to(vectors.device)
    return text_scores(vectors, made.flatten(0, 1), [top])[0].reshape(made.shape[:2])


def save_models(
    job: FamilyJob, k: int, learnt: Sequence[Mapping[Key, Learnt]], made_by: Sequence[Any]
) -> None:
    """Keep the models of one k: for each fold, what its draws gave."""
    folder = objects.join(job.folder, "models")
    of_k = [
        (fold.name, draw, state)
        for fold, own in zip(job.data.folds, learnt, strict=True)
        for (of, draw), state in own.items()
        if of == k
    ]
    states = [state for _, _, state in of_k if not isinstance(state, FitResult)]
    if states:
        tensors = {name: torch.stack([s[name] for s in states]).contiguous() for name in states[0]}
        _save(objects.join(folder, FILE), tensors, job, k)
    for name, draw, state in of_k:
        if isinstance(state, FitResult):
            uri = objects.join(folder, run_name(name, draw + 1) + SUFFIX)
            save_fit(uri, state, _facts(job, made_by), beside=False)


def load_few_shot(model: str) -> FewShotModel:
    """The models of a study's folder, or of the file.

    Raises:
        WeightsError: there are none.
    """
    uri = model if model.endswith(SUFFIX) else objects.join(model, "models", FILE)
    try:
        data = objects.read_bytes(uri)
        length = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_METADATA])
        tensors = load(data)
    except FileNotFoundError as error:
        raise WeightsError(
            f"{uri}: expected the models of a few-shot study, got no file. Studies of an older "
            "mstar kept none: run it again."
        ) from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{uri}: expected few-shot models, got {error}.") from error
    return FewShotModel(
        uri=uri,
        method=facts["method"],
        classes=tuple(facts["classes"]),
        k=facts["k"],
        tensors=tensors,
        digest=hashlib.sha256(data).hexdigest(),
        top=facts["top"],
        scale=facts["scale"],
    )


def _save(uri: str, tensors: Mapping[str, Tensor], job: FamilyJob, k: int) -> None:
    facts = {
        "method": job.study.head,
        "classes": list(job.data.class_names),
        "k": k,
        "top": getattr(job.options, "top", 0),
        "scale": getattr(job.options, "scale", 1.0),
    }
    data = save(dict(tensors), {_METADATA: json.dumps(facts, sort_keys=True)})
    objects.write_whole(uri, data)


def _facts(job: FamilyJob, made_by: Sequence[Any]) -> dict[str, Any]:
    """What a head's file says of itself, as far as few-shot has it."""
    return {
        "study": to_dict(job.study),
        "training": "classification",
        "class_names": list(job.data.class_names),
        "digests": {"labels": job.data.digest, "splits": job.data.split_digest},
        "median_risk": None,
        "edges": None,
        "unit": job.data.task.unit,
        "made_by": list(made_by),
    }
