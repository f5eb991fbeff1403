"""Reports as the token ids that a BERT-like text encoder reads, 512 a case by default.

    [CLS] 510 tokens of the report [SEP]      or      [CLS] fewer tokens [SEP] [PAD] [PAD] …

A longer report gives one window: a random one in training, drawn from (seed, epoch, case) and so
the same whatever the order or the number of workers; the first one in evaluation. The paper:
"Report pre-processing" (BioBERT's tokenizer, a random window, `[PAD]`).

    tokenizer = ReportTokenizer("dmis-lab/biobert-base-cased-v1.2")      # or a local folder
    tokens = tokenizer.encode(text, window="random", seed=case_seed(0, epoch, case_id))
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int64

from mstar.data.tokenizer_files import DEFAULT_TOKENIZER, tokenizer_folder
from mstar.errors import ConfigError, WeightsError

logger = logging.getLogger(__name__)

Window = Literal["first", "random"]
_SPECIAL = ("cls_token", "sep_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTokenConfig:
    """How reports become tokens."""

    tokenizer: str = DEFAULT_TOKENIZER
    """Tokenizer: a hub id (org/name[@revision]) or a folder with vocab.txt or tokenizer.json."""
    max_tokens: int = 512
    """Tokens of one report, [CLS] and [SEP] among them; longer reports give one window."""
    casing: Literal["vocabulary", "files"] = "vocabulary"
    """vocabulary: keep capitals when the vocabulary has any; files: what the tokenizer's own files
    say (BioBERT's say nothing, and transformers then turns capitals into small letters)."""
    trim: bool = False
    """Cut batches to their longest report, instead of padding every one to max_tokens."""

    def __post_init__(self) -> None:
        """Checks.

        Raises:
            ConfigError: no token of a report would fit.
        """
        if self.max_tokens < 3:
            raise ConfigError(
                f"max_tokens: expected at least 3 ([CLS], one token, [SEP]), got {self.max_tokens}."
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """One report as a text encoder takes it.

    attention_mask: True where there is a token, special ones among them.
    num_tokens: of the whole report, special tokens not counted; 0: a report that says nothing.
    start: where in the report the window begins.
    """

    input_ids: Int64[np.ndarray, " token"]
    attention_mask: Bool[np.ndarray, " token"]
    num_tokens: int
    start: int

    @property
    def is_empty(self) -> bool:
        """Whether the report has no token of its own."""
        return self.num_tokens == 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch:
    """Reports of several cases; fields as in `Tokens`."""

    input_ids: Int64[np.ndarray, "case token"]
    attention_mask: Bool[np.ndarray, "case token"]
    num_tokens: Int64[np.ndarray, " case"]

    @property
    def is_empty(self) -> Bool[np.ndarray, " case"]:
        """Which reports have no token of their own."""
        empty: Bool[np.ndarray, " case"] = self.num_tokens == 0
        return empty


def case_seed(seed: int, epoch: int, case_id: str) -> tuple[int, ...]:
    """What a case's random window is drawn from: the same in every process and on every machine."""
    return seed, epoch, int.from_bytes(hashlib.blake2b(case_id.encode(), digest_size=8).digest())


class ReportTokenizer:
    """A WordPiece tokenizer and the windows it cuts; can be sent to other processes."""

    def __init__(
        self,
        name_or_folder: str | Path = DEFAULT_TOKENIZER,
        *,
        max_tokens: int = 512,
        casing: Literal["vocabulary", "files"] = "vocabulary",
    ) -> None:
        """Load the tokenizer, from the hub's local cache or the folder when it is there.

        Raises:
            WeightsError: it cannot be had, lacks [CLS], [SEP], [PAD] or [UNK], or has more
                tokens than the model beside it.
            ConfigError: `max_tokens` is less than 3, or more than the model has positions for.
        """
        ReportTokenConfig(max_tokens=max_tokens)
        self.name = str(name_or_folder)
        self.max_tokens = max_tokens
        with tokenizer_folder(self.name) as folder:
            self._tokenizer = _load(folder, self.name, casing)
            _check_model(folder, self.name, len(self._tokenizer), max_tokens)
        self.cls_id, self.sep_id, self.pad_id, self.unk_id = _special_ids(
            self._tokenizer, self.name
        )
        self.digest = hashlib.sha256(self.state.encode()).hexdigest()

    @classmethod
    def from_config(cls, config: ReportTokenConfig) -> "ReportTokenizer":
        """The tokenizer that a config asks for."""
        return cls(config.tokenizer, max_tokens=config.max_tokens, casing=config.casing)

    @property
    def state(self) -> str:
        """All of the tokenizer as a text."""
        return str(self._tokenizer.backend_tokenizer.to_str())

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self._tokenizer)

    def token_ids(self, texts: Sequence[str]) -> list[Int64[np.ndarray, " _"]]:
        """Every token of each report, without special ones; `[SEP]` in a text is plain text."""
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=False,
            padding=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # it would warn of every long report
        )
        return [np.asarray(ids, np.int64) for ids in encoded["input_ids"]]

    def cut(
        self,
        ids: Int64[np.ndarray, " token"],
        *,
        window: Window,
        seed: Sequence[int] = (),
    ) -> Tokens:
        """The window of a report that `token_ids` has made, so that epochs tokenise only once."""
        body = self.max_tokens - 2
        start = _window_start(len(ids), body, window, seed)
        input_ids = np.full(self.max_tokens, self.pad_id, np.int64)
        inside = ids[start : start + body]
        input_ids[0] = self.cls_id
        input_ids[1 : len(inside) + 1] = inside
        input_ids[len(inside) + 1] = self.sep_id
        return Tokens(
            input_ids=input_ids,
            attention_mask=np.arange(self.max_tokens) < len(inside) + 2,
            num_tokens=len(ids),
            start=start,
        )

    def encode(self, text: str, *, window: Window = "first", seed: Sequence[int] = ()) -> Tokens:
        """One report.

        Args:
            text: the report.
            window: random in training, first in evaluation; without effect on short reports.
            seed: what a random window is drawn from: `case_seed(seed, epoch, case_id)`.
        """
        return self.cut(self.token_ids([text])[0], window=window, seed=seed)

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        window: Window = "first",
        seeds: Sequence[Sequence[int]] = (),
        trim: bool = False,
    ) -> TokenBatch:
        """Several reports, in their order; each as `encode` would give it.

        Args:
            texts: the reports.
            window: as for `encode`.
            seeds: one a report, when the window is random.
            trim: cut the columns that are `[PAD]` in every report.
        """
        return self.collate(self.token_ids(texts), window=window, seeds=seeds, trim=trim)

    def collate(
        self,
        ids: Sequence[Int64[np.ndarray, " _"]],
        *,
        window: Window = "first",
        seeds: Sequence[Sequence[int]] = (),
        trim: bool = False,
    ) -> TokenBatch:
        """A batch of reports that `token_ids` has made; arguments as for `encode_batch`."""
        if window == "random" and len(seeds) != len(ids):
            raise ConfigError(f"seeds: expected one a report ({len(ids)}), got {len(seeds)}.")
        seeds = seeds if window == "random" else [()] * len(ids)
        cut = [self.cut(one, window=window, seed=s) for one, s in zip(ids, seeds, strict=True)]
        input_ids = np.array([tokens.input_ids for tokens in cut], np.int64)
        mask = np.array([tokens.attention_mask for tokens in cut], np.bool_)
        width = int(mask.sum(axis=-1).max(initial=0)) if trim else self.max_tokens
        return TokenBatch(
            input_ids=np.ascontiguousarray(input_ids.reshape(-1, self.max_tokens)[:, :width]),
            attention_mask=np.ascontiguousarray(mask.reshape(-1, self.max_tokens)[:, :width]),
            num_tokens=np.array([tokens.num_tokens for tokens in cut], np.int64),
        )


def _window_start(num_tokens: int, body: int, window: Window, seed: Sequence[int]) -> int:
    """Every window is equally likely; the last one ends with the report."""
    if window == "first" or num_tokens <= body:
        return 0
    if not seed:
        raise ConfigError("seed: a random window needs case_seed(seed, epoch, case_id), got none.")
    return int(np.random.default_rng(list(seed)).integers(num_tokens - body + 1))


def _load(folder: Path, name: str, casing: str) -> Any:
    """The tokenizer of a folder, cased as its vocabulary is unless told otherwise."""
    from transformers import AutoTokenizer  # takes seconds

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        if casing == "vocabulary" and _lowers_a_cased_vocabulary(tokenizer):
            logger.info("%s: its vocabulary has capitals, so they are kept in reports", name)
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, do_lower_case=False
            )
    except Exception as error:  # whatever kind a broken file gives
        raise WeightsError(
            f"{name}: expected a BERT tokenizer that transformers can load, got "
            f"{type(error).__name__}: {str(error)[:200]}. Download its files anew."
        ) from error
    if not tokenizer.is_fast:
        raise WeightsError(f"{name}: expected a tokenizer with vocab.txt or tokenizer.json.")
    return tokenizer


def _lowers_a_cased_vocabulary(tokenizer: Any) -> bool:
    """Whether it makes capitals small although the vocabulary has words with capitals."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None or normalizer.normalize_str("A") != "a":
        return False
    special = set(tokenizer.all_special_tokens)
    return any(token != token.lower() for token in tokenizer.get_vocab() if token not in special)


def _special_ids(tokenizer: Any, name: str) -> tuple[int, int, int, int]:
    # without those that transformers adds when it misses them: no model has vectors for such ids
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    missing = [kind for kind in _SPECIAL if getattr(tokenizer, kind) not in vocabulary]
    if missing:
        raise WeightsError(
            f"{name}: its vocabulary lacks {', '.join(missing)}. Take a tokenizer of a BERT-like "
            "model, as the text encoder is one."
        )
    cls, sep, pad, unk = (vocabulary[getattr(tokenizer, kind)] for kind in _SPECIAL)
    return int(cls), int(sep), int(pad), int(unk)


def _check_model(folder: Path, name: str, vocab_size: int, max_tokens: int) -> None:
    """The model beside the tokenizer, when its config is there, takes every token and position."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    if config.get("vocab_size", vocab_size) < vocab_size:
        raise WeightsError(
            f"{name}: its model has {config['vocab_size']:,} tokens, its tokenizer {vocab_size:,}. "
            "Download the files of one model, whole."
        )
    positions = config.get("max_position_embeddings", max_tokens)
    if positions < max_tokens:
        raise ConfigError(
            f"max_tokens: {name} has positions for {positions} tokens, got {max_tokens}. "
            f"Give at most {positions}."
        )
