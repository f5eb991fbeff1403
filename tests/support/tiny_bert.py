"""A real but tiny BERT on disk: config, WordPiece vocabulary, tokenizer files, random weights."""

import json
import re
import string
from collections.abc import Iterable
from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_tiny_bert(
    folder: Path,
    words: Iterable[str],
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    seed: int = 0,
    max_positions: int = 512,
) -> Path:
    """Write a model folder that AutoTokenizer and AutoModel load without a network.

    Every word is one token; any other ASCII word is spelt letter by letter, so nothing is [UNK].
    The tokenizer keeps capitals. Equal arguments give equal weights.
    """
    import torch
    from safetensors.torch import save_file

    from mstar.models.torchvision_ops import declare_missing_ops

    declare_missing_ops()  # transformers' models import torchvision
    from transformers import BertConfig, BertModel

    vocabulary = write_tokenizer(folder, words)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * hidden,
        max_position_embeddings=max_positions,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    config.architectures = ["BertModel"]
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_tokenizer(folder: Path, words: Iterable[str], *, cased: bool = True) -> list[str]:
    """Write the tokenizer alone; returns its vocabulary in the order of the ids."""
    folder.mkdir(parents=True, exist_ok=True)
    characters = [c for c in string.printable if not c.isspace()]
    pieces = [f"##{c}" for c in string.ascii_letters + string.digits]
    whole = sorted({part for word in words for part in re.findall(r"[^\W_]+", word)})
    vocabulary = list(dict.fromkeys([*SPECIAL, *characters, *pieces, *whole]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    settings = {"do_lower_case": not cased, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return vocabulary
