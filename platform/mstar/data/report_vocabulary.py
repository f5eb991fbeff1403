"""The tokens that reports are written in: learnt from the training split, or BERT's.

    learnt    byte-level BPE: every text can be written and read back, nothing is unknown
    BERT      the vocabulary of a BERT-like model's folder; rare letters may be [UNK]

Runs of white space are one blank. The whole vocabulary is a text (`state`) that is kept beside the
weights of the model that was trained with it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from mstar.data.report_tokens import ReportTokenizer
from mstar.errors import ConfigError, WeightsError

PAD, BEGIN, END = "[PAD]", "[BEGIN]", "[END]"
BYTES = 256  # letters of the alphabet of a learnt vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """All of a vocabulary: the tokenizer's own description, and its special tokens."""

    tokenizer: str
    pad: int
    begin: int
    end: int


class ReportVocabulary:
    """Texts to tokens and back."""

    def __init__(self, state: str) -> None:
        """Read what `state` gave.

        Raises:
            WeightsError: it is something else.
        """
        from tokenizers import Tokenizer  # type: ignore[import-untyped,unused-ignore]

        try:
            found = _State(**json.loads(state))
            self._tokenizer: Any = Tokenizer.from_str(found.tokenizer)
        except Exception as error:  # whatever kind the library gives
            raise WeightsError(
                f"vocabulary: expected one of this package, got {type(error).__name__}. Train the "
                "model again."
            ) from error
        self._tokenizer.encode_special_tokens = True  # [END] in a report is plain text
        self.pad, self.begin, self.end = found.pad, found.begin, found.end
        self.state = state
        self._special = {found.pad, found.begin, found.end}

    def __len__(self) -> int:
        """Number of tokens, special ones among them."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process as its text."""
        return ReportVocabulary, (self.state,)

    @property
    def digest(self) -> str:
        """The sha256 of all of it."""
        return hashlib.sha256(self.state.encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Int64[np.ndarray, " _"]]:
        """The tokens of each text, without those of beginning and end."""
        plain = [one_line(text) for text in texts]
        encoded = self._tokenizer.encode_batch(plain, add_special_tokens=False)
        return [np.asarray(one.ids, np.int64) for one in encoded]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; special ones are passed over."""
        kept = [token for token in tokens if token not in self._special]
        return one_line(self._tokenizer.decode(kept, skip_special_tokens=True))


def learn_vocabulary(
    texts: Sequence[str], *, size: int = 4000, lower_case: bool = True
) -> ReportVocabulary:
    """A vocabulary of byte pairs that are frequent in the texts; equal texts give equal tokens.

    Args:
        texts: reports of the training split, and of no other.
        size: tokens at most.
        lower_case: write everything in small letters.

    Raises:
        ConfigError: there is no text, or no room for the letters.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = [PAD, BEGIN, END]
    if not texts or size < BYTES + len(special):
        raise ConfigError(
            f"vocabulary: expected texts, and room for {BYTES + len(special)} tokens or more, got "
            f"{len(texts)} texts and {size} tokens."
        )
    tokenizer: Any = Tokenizer(models.BPE())
    if lower_case:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(one_line, texts), trainer)
    ids = [tokenizer.token_to_id(name) for name in special]
    return _vocabulary(tokenizer.to_str(), *ids)


def bert_vocabulary(name_or_folder: str) -> ReportVocabulary:
    """The vocabulary of a BERT-like model: [CLS] begins a text, [SEP] ends it.

    Raises:
        WeightsError: it cannot be had.
    """
    tokenizer = ReportTokenizer(name_or_folder)
    ids = tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id
    return _vocabulary(tokenizer.state, *ids)


def one_line(text: str) -> str:
    """The text with single blanks."""
    return " ".join(text.split())


def _vocabulary(tokenizer: str, pad: int, begin: int, end: int) -> ReportVocabulary:
    state = {"tokenizer": tokenizer, "pad": pad, "begin": begin, "end": end}
    return ReportVocabulary(json.dumps(state, sort_keys=True))
