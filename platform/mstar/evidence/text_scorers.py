"""Patches scored by text: by one that is given, or by the prompts of a zero-shot study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mstar.downstream.language.encoders import PatchSide, TextSide
from mstar.errors import ConfigError
from mstar.evidence.asked_slides import predict_config
from mstar.evidence.config import HeatmapConfig
from mstar.evidence.explain import RawLayer
from mstar.evidence.scored import SIMILARITY, ScoredBag, bag_of, check_classes
from mstar.features.files import SlideFeatures, cast_features
from mstar.predict.models import needed, stamp_of
from mstar.predict.prompt_models import zero_shot_parts
from mstar.predict.rows import class_columns
from mstar.predict.same_features import recorded_in


class TextScorer:
    """A text, less another one: the cosine with each patch in the shared space."""

    unit = "slide"
    expected = None

    def __init__(self, config: HeatmapConfig) -> None:
        """Loads the encoders.

        Raises:
            WeightsError: a folder does not hold what it should.
            ConfigError: the text has no token, or a class is asked for.
        """
        check_classes(config.classes, ())
        cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
        device = "cuda" if cuda else "cpu"
        side = TextSide(config.stage1, device)
        texts = [config.text, *([config.minus] if config.minus.strip() else [])]
        vectors = side.vectors(side.token_ids(texts, ["--text", "--minus"][: len(texts)]))
        self.question = vectors[0] - (vectors[1] if len(vectors) > 1 else 0.0)
        self.patches = PatchSide(config.stage1, config.stage2, window=config.window, device=device)
        self.identity = {
            "text": config.text,
            "minus": config.minus,
            "stage1": config.stage1,
            "stage2": config.stage2,
            "methods": {SIMILARITY: f"cosine with the text, {self.patches.space} of stage 1 and 2"},
            "unit": self.unit,
        }

    def score(self, name: str, slides: Sequence[SlideFeatures], *, rna: str = "") -> ScoredBag:
        """One layer.

        Raises:
            WeightsError: features of another length.
        """
        found = [
            self.patches.vectors(slide.features).cpu().numpy() @ self.question for slide in slides
        ]
        layer = RawLayer(
            kind=SIMILARITY, class_name="", values=np.concatenate(found).astype(np.float32)
        )
        return ScoredBag(layers=(layer,), predicted="", facts={"bag": name})


class ZeroShotScorer:
    """A zero-shot study: the cosine of each patch with the vector of every class."""

    def __init__(self, config: HeatmapConfig, record: Mapping[str, Any]) -> None:
        """Loads encoders and prompts.

        Raises:
            ConfigError: the study scores slides by their vector, not by patches.
            WeightsError: stages 1 and 2 are not those that it was run with.
        """
        settings = predict_config(config, config.slides[0] if config.slides else None)
        self.parts = zero_shot_parts(settings, record)
        side = self.parts.scorer.patch_side
        if side is None:
            raise ConfigError(
                f"{config.model}: it compares the vectors of slides with text, not patches. Use a "
                "study of mi_zero, or --text."
            )
        self.unit = str(needed(record, "unit", config.model))
        if config.unit != "auto":
            self.unit = config.unit
        made_by = needed(record, "made_by", config.model)
        self.expected = recorded_in(made_by, of=config.model)
        self.names = self.parts.prompts.class_names
        check_classes(config.classes, self.names)
        stamped = stamp_of(record["study"], [needed(record, "stages", config.model)])
        self.identity = {
            "model": {k: v for k, v in stamped.items() if k != "mstar_version"},
            "prompts": self.parts.prompts.digest,
            "methods": {SIMILARITY: f"cosine with the class's prompts, {side.space} of stage 1, 2"},
            "averaged_over": 1,
            "unit": self.unit,
        }

    def score(self, name: str, slides: Sequence[SlideFeatures], *, rna: str = "") -> ScoredBag:
        """A layer for each class.

        Raises:
            WeightsError: features of another length.
        """
        scorer, ensemble = self.parts.scorer, self.parts.ensemble
        vectors = scorer.vectors(cast_features(bag_of(slides).features), name)
        cosines = (vectors @ ensemble[0].T).float().cpu().numpy()
        told = class_columns(self.names, scorer.row(vectors, ensemble)[0])
        return ScoredBag(
            layers=tuple(
                RawLayer(kind=SIMILARITY, class_name=own, values=np.ascontiguousarray(column))
                for own, column in zip(self.names, cosines.T, strict=True)
            ),
            predicted=str(told["predicted"]),
            facts={"bag": name, "prediction": told},
        )
