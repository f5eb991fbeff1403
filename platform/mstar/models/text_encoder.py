"""The report encoder: a model of the BERT family, its first token, one linear projection.

Any hub id or local folder that `transformers.AutoModel` takes; a folder is read without a network.
There is no pooler, and nothing is normalised here.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mstar.errors import WeightsError
from mstar.models.first_token import compute_first_token_only, mask_for_all
from mstar.models.torchvision_ops import declare_missing_ops

DEFAULT_TEXT_ENCODER = "dmis-lab/biobert-base-cased-v1.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderConfig:
    """What a text encoder is."""

    name: str = DEFAULT_TEXT_ENCODER
    """Hub id or local folder of the pretrained model, and of its tokenizer."""
    output_dim: int = 512
    """Length of a report's vector."""
    gradient_checkpointing: bool = True
    """Recompute each layer in the backward pass: a third more time, far less memory; a choice."""


class TextEncoder(nn.Module):
    """Reports' tokens in, their vectors out."""

    def __init__(self, config: TextEncoderConfig, bert: nn.Module) -> None:
        """Use `pretrained_text_encoder`; `bert` is a transformers model without a head."""
        super().__init__()
        self.config = config
        self.bert = bert
        self._first_only = compute_first_token_only(bert)
        self.proj_text = nn.Linear(bert.config.hidden_size, config.output_dim)  # type: ignore[union-attr, arg-type]
        if config.gradient_checkpointing:
            bert.config.use_cache = False  # type: ignore[union-attr]
            bert.activation_checkpointing_enable(  # type: ignore[operator]
                activation_checkpointing_kwargs={"use_reentrant": False}
            )

    def forward(
        self, tokens: Int64[Tensor, "report token"], mask: Bool[Tensor, "report token"]
    ) -> Float[Tensor, "report dim"]:
        """The projected last hidden state of the first token, [CLS].

        Args:
            tokens: ids from the model's own tokenizer, [CLS] first.
            mask: False where a token is padding.
        """
        seen = mask_for_all(mask) if self._first_only else mask.long()
        hidden = self.bert(input_ids=tokens, attention_mask=seen).last_hidden_state
        result: Tensor = self.proj_text(hidden[:, 0])
        return result


def pretrained_text_encoder(config: TextEncoderConfig) -> TextEncoder:
    """The pretrained model of a hub id or folder, in float32, with a freshly drawn projection.

    Raises:
        WeightsError: there is no such model, or its weights do not fill it.
    """
    declare_missing_ops()  # transformers' models import torchvision
    from transformers import AutoConfig, AutoModel

    try:
        with _quiet():
            bert_config = AutoConfig.from_pretrained(config.name)
            bert, loading = AutoModel.from_pretrained(
                config.name,
                config=bert_config,
                dtype=torch.float32,
                output_loading_info=True,
                **_without_pooler(bert_config),
            )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise WeightsError(
            f"text encoder {config.name}: cannot be loaded ({reason}). Give a hub id that this "
            "machine can reach, or a local folder with config.json, weights and tokenizer."
        ) from error
    missing = sorted(key for key in loading["missing_keys"] if "position_ids" not in key)
    if missing:
        raise WeightsError(
            f"text encoder {config.name}: {len(missing)} tensors are not in its weights, such as "
            f"{', '.join(missing[:3])}. Give a folder whose weights belong to its config.json."
        )
    return TextEncoder(config, bert)


def empty_text_encoder(config: TextEncoderConfig, bert: dict[str, Any]) -> TextEncoder:
    """A text encoder of a stated architecture with drawn weights, to load an export into.

    Args:
        config: as exported.
        bert: the transformers config, as a dict.
    """
    declare_missing_ops()
    from transformers import AutoConfig, AutoModel

    fields = {key: value for key, value in bert.items() if key != "model_type"}
    bert_config = AutoConfig.for_model(bert["model_type"], **fields)
    model = AutoModel.from_config(bert_config, dtype=torch.float32, **_without_pooler(bert_config))
    return TextEncoder(config, model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and report of tensors; what is missing is told by us."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _without_pooler(bert_config: Any) -> dict[str, bool]:
    """The argument that leaves the pooler out, for the models that have one."""
    from transformers import AutoModel

    model_class = AutoModel._model_mapping[type(bert_config)]
    takes_it = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes_it else {}
