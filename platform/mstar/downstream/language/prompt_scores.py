"""What prompts say of one slide: the same in a zero-shot study and for a slide that comes later."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from mstar.downstream.family_job import FamilySources
from mstar.downstream.language.encoders import PatchSide, SlideSide, TextSide
from mstar.downstream.language.options import MiZeroOptions, SlideTextOptions
from mstar.downstream.language.pooling import class_scores
from mstar.downstream.language.prompts import Prompts


class PromptScorer:
    """Scores slides against the vectors of classes, by the patches or by the slide's vector.

    tops: numbers of best patches that count; 0 where the slide vector is scored.
    """

    def __init__(self, sources: FamilySources, options: Any, device: str = "cpu") -> None:
        """Load what patches, or slides, go through."""
        self.options, self.device = options, device
        self.slide_side: SlideSide | None = None
        self.patch_side: PatchSide | None = None
        self.tops: tuple[int, ...] = (0,)
        if isinstance(options, SlideTextOptions):
            self.slide_side = SlideSide(sources.stage1, window=options.window, device=device)
            return
        assert isinstance(options, MiZeroOptions)
        self.tops = options.all_tops
        self.patch_side = PatchSide(
            sources.stage1, sources.stage2, space=options.space, window=options.window,
            device=device,
        )  # fmt: skip

    @property
    def top(self) -> int:
        """The number of patches that the study's row is of."""
        return self.options.top if isinstance(self.options, MiZeroOptions) else 0

    def vectors(
        self, bag: Float[np.ndarray, "patch feature"], name: str
    ) -> Float32[Tensor, "vector dim"]:
        """Of each patch, or the one of the slide; of a bag beyond the window a draw by its name."""
        if self.slide_side is not None:
            return self.slide_side.vector(bag, name)[None]
        assert self.patch_side is not None
        return self.patch_side.vectors(bag)

    def scores(
        self,
        vectors: Float32[Tensor, "vector dim"],
        classes: Float32[Tensor, "wording label dim"],
    ) -> Float32[np.ndarray, "top wording label"]:
        """A slide's scores of the classes, in every wording, for each number of patches."""
        if self.slide_side is not None:
            found = (classes @ vectors[0])[None]
        else:
            vote = self.options.pool == "vote"
            found = class_scores(vectors, classes, self.tops, vote=vote)
        said: Float32[np.ndarray, "top wording label"] = found.cpu().numpy()
        return said

    def row(
        self,
        vectors: Float32[Tensor, "vector dim"],
        ensemble: Float32[Tensor, "1 label dim"],
    ) -> Float32[np.ndarray, "1 label"]:
        """Probabilities by the ensemble of all prompts: the study's row, to the bit."""
        scores = self.scores(vectors, ensemble)[self.tops.index(self.top)]
        return self.probabilities(scores)

    def probabilities(
        self, scores: Float32[np.ndarray, "sample label"]
    ) -> Float32[np.ndarray, "sample label"]:
        """Scores as probabilities; votes are shares already."""
        if isinstance(self.options, MiZeroOptions) and self.options.pool == "vote":
            return scores
        return torch.softmax(torch.from_numpy(scores) * self.options.scale, dim=1).numpy()


def sentence_vectors(
    prompts: Prompts, stage1: str, device: str = "cpu"
) -> tuple[Float32[np.ndarray, "sentence dim"], float]:
    """The unit vectors of all prompts, and the share of their tokens that is unknown."""
    side = TextSide(stage1, device)
    texts = [sentence.text for sentence in prompts.sentences()]
    ids = side.token_ids(texts, [f"{prompts.uri}: prompt {text!r}" for text in texts])
    return side.vectors(ids), side.unknown_share(ids)
