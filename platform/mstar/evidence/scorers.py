"""Which scorer a call asks for."""

from mstar.errors import ConfigError
from mstar.evidence.config import HeatmapConfig
from mstar.evidence.model_scorer import ModelScorer
from mstar.evidence.text_scorers import TextScorer, ZeroShotScorer
from mstar.predict.models import study_record


def make_scorer(config: HeatmapConfig) -> ModelScorer | ZeroShotScorer | TextScorer:
    """The one that is asked for.

    Raises:
        ConfigError: a study of a kind that scores no patches.
    """
    if not config.model:
        return TextScorer(config)
    record = study_record(config.model)
    family = str(record.get("family", ""))
    if family == "zero_shot":
        if config.method != "auto":
            raise ConfigError(
                f"--method {config.method}: {config.model} is of zero-shot, take auto"
            )
        return ZeroShotScorer(config, record)
    if family and not (family == "few_shot" and record["study"]["head"] == "few_abmil"):
        raise ConfigError(
            f"{config.model}: a study of {family} ({record['study']['head']}) scores no patches. "
            "Use one of a trained head, of zero-shot, or --text."
        )
    return ModelScorer(config)
