"""Let the last layer of a BERT compute [CLS] alone: nothing else of what it gives is read.

Keys and values of that layer still come from every token, so that the vector of [CLS] is the same.
What is saved are the other tokens' queries, attention and feed-forward: one layer of twelve for
BioBERT, nearly the whole of an encoder with one layer.
"""

from types import MethodType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

KINDS_OF_ATTENTION = ("sdpa", "eager")  # those whose mask has a row for each query


def compute_first_token_only(bert: nn.Module) -> bool:
    """Change the last layer of a transformers model in place; its tensors keep their names.

    Returns:
        Whether it was changed. Models of other families, and kinds of attention that take other
        masks, are left as they are; the first token they give is the same.
    """
    from transformers.models.bert.modeling_bert import BertLayer

    config: Any = bert.config
    layers: Any = getattr(getattr(bert, "encoder", None), "layer", None)
    if not layers or type(layers[-1]) is not BertLayer or config.is_decoder:
        return False
    if config._attn_implementation not in KINDS_OF_ATTENTION:
        return False
    layers[-1].forward = MethodType(_first_token, layers[-1])
    return True


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
        attention_mask: [report, 1 or head, token, token], True or 0 where a token is seen.
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


def _heads(
    attention: Any, rows: Float[Tensor, "report token dim"]
) -> Float[Tensor, "report head token head_dim"]:
    return rows.unflatten(2, (-1, attention.attention_head_size)).transpose(1, 2)
