"""Let the last layer of a BERT compute [CLS] alone: nothing else of what it gives is read.

Keys and values of that layer still come from every token, so that the vector of [CLS] is the same.
What is saved are the other tokens' queries, attention and feed-forward: one layer of twelve for
BioBERT, nearly the whole of an encoder with one layer.
"""

from types import MethodType
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

BERT_LAYER = ("transformers.models.bert.modeling_bert", "BertLayer")  # importing it takes seconds


def compute_first_token_only(bert: nn.Module) -> bool:
    """Change the last layer of a transformers model in place; its tensors keep their names.

    The model then takes masks of one row for all queries (`mask_for_all`): the library would
    make one row for each, which costs a small model a tenth of its time.

    Returns:
        Whether it was changed. Models of other families, and of other kinds of attention than
        torch's, are left as they are; the first token they give is the same.
    """
    layers: Any = getattr(getattr(bert, "encoder", None), "layer", None)
    if not layers or _name_of(layers[-1]) != BERT_LAYER:
        return False
    config: Any = bert.config
    if config.is_decoder or config._attn_implementation != "sdpa":
        return False
    layers[-1].forward = MethodType(_first_token, layers[-1])
    return True


def mask_for_all(mask: Bool[Tensor, "report token"]) -> Bool[Tensor, "report 1 1 token"]:
    """Which tokens are seen, the same for every head and query."""
    return mask[:, None, None, :]


def _first_token(
    layer: Any,
    hidden_states: Float[Tensor, "report token dim"],
    attention_mask: Tensor | None = None,
    *_: object,
    **__: object,
) -> Float[Tensor, "report 1 dim"]:
    """A `BertLayer`'s output for the first token.

    Args:
        layer: the layer.
        hidden_states: what the layer before gives for every token.
        attention_mask: [report, 1, 1 or token, token], True where a token is seen.
    """
    attention = layer.attention.self
    first = hidden_states[:, :1]
    context = scaled_dot_product_attention(
        _heads(attention, attention.query(first)),
        _heads(attention, attention.key(hidden_states)),
        _heads(attention, attention.value(hidden_states)),
        attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
        dropout_p=attention.dropout.p if layer.training else 0.0,
        scale=attention.scaling,
    )  # [B, H, 1, D / H]
    attended = layer.attention.output(context.transpose(1, 2).flatten(2), first)
    made: Tensor = layer.feed_forward_chunk(attended)
    return made


def _name_of(layer: nn.Module) -> tuple[str, str]:
    kind = type(layer)
    return kind.__module__, kind.__qualname__


def _heads(
    attention: Any, rows: Float[Tensor, "report token dim"]
) -> Float[Tensor, "report head token head_dim"]:
    split = rows.view(*rows.shape[:2], -1, attention.attention_head_size)
    return split.transpose(1, 2)
