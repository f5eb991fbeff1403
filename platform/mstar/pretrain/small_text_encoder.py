"""A small report encoder from nothing, for machines that reach no model hub: demos and tests.

A BERT of a few layers with drawn weights, whose vocabulary is the words that several reports share;
any other word, number or sign is [UNK]. It knows no medicine: use a pretrained one for science.

Two things keep it from learning a few hundred reports by heart. It cannot see what is one report's
own (names, numbers, misprints). And it starts as a mean of its words: attention nearly even,
places nearly without weight. What that is worth: `platform/docs/stage1-proof.md`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from mstar.models.torchvision_ops import declare_missing_ops

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_SHARE, MIN_REPORTS = 0.02, 2  # of the reports that a word of the vocabulary is in
POSITION_STD = 0.002  # a tenth of BERT's
ATTENTION_SCALE = 0.3  # of queries and keys, against a start that keeps lengths
_WORD = re.compile(r"[^\W_]+")


def write_small_text_encoder(
    folder: Path,
    texts: Iterable[str],
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    max_words: int = 8000,
    max_positions: int = 512,
    seed: int = 0,
) -> Path:
    """Write a model folder that transformers loads without a network.

    Args:
        folder: where to; made when it is not there.
        texts: the reports whose words become the vocabulary.
        hidden: length of a token's vector.
        layers: transformer layers.
        heads: attention heads of a layer.
        max_words: most words of the vocabulary, the commonest first.
        max_positions: longest text in tokens.
        seed: of the weights; equal arguments give equal bytes.
    """
    vocabulary = write_vocabulary(folder, common_words(texts, max_words))
    declare_missing_ops()  # transformers' models import torchvision
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max_positions,
        attention_probs_dropout_prob=0.0,  # with it the CPU's fast attention is out, 3 times slower
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
        # BERT's 0.02 is for its width: here all reports would start alike, and stay so for long.
        # Not so for the words, whose vectors are normalised: small ones learn faster.
        for part in model.encoder.modules():
            if isinstance(part, torch.nn.Linear):
                torch.nn.init.normal_(part.weight, std=hidden**-0.5)
        for name, weight in model.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                weight.data *= ATTENTION_SCALE
        torch.nn.init.normal_(model.embeddings.position_embeddings.weight, std=POSITION_STD)
    config.architectures = ["BertModel"]
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def common_words(texts: Iterable[str], max_words: int) -> list[str]:
    """Words that several reports share, the commonest first, ties by the alphabet."""
    reports = [set(_WORD.findall(text)) for text in texts]
    counts = Counter(word for report in reports for word in report)
    fewest = max(MIN_REPORTS, MIN_SHARE * len(reports))
    shared = [word for word, count in counts.items() if count >= fewest]
    return sorted(shared, key=lambda word: (-counts[word], word))[:max_words]


def write_vocabulary(folder: Path, words: Iterable[str]) -> list[str]:
    """Write the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = list(dict.fromkeys([*SPECIAL, *words]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    settings = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary
