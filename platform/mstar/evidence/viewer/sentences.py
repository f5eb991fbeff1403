"""The sentences of reports that lie nearest to a slide's patches in the space of texts.

A nearest neighbour is always found, whether or not the sentence is true of the patch: what is shown
is what the encoders put side by side, and nothing about the patient.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32

from mstar.data.reports import Report, read_reports
from mstar.downstream.language.encoders import PatchSide, TextSide
from mstar.errors import CohortError
from mstar.training.seeds import seed_of

SHOWN = 3
_ROWS_AT_ONCE = 8192
_FEWEST_WORDS, _MOST_WORDS = 3, 60
_END = re.compile(r"(?<=[.!?;]) +(?=[\"'(\[]?[A-Z0-9])|\n+")
_NO_END = re.compile(r"(?:^|[\s(])(?:[A-Za-z]|\d{1,2}|dr|vs|cf|fig|no|nos|approx|ca|e\.g|i\.e)\.$",
                     re.IGNORECASE)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nearest:
    """Sentences, and of each patch those that lie nearest.

    texts: that some patch is near. cases: whose report each is from, the first of several.
    index: places in `texts`, the nearest first; -1: the patch has no features.
    similarity: cosines. num_chosen_from: of how many sentences. space: projection or tokens.
    """

    texts: tuple[str, ...]
    cases: tuple[str, ...]
    index: Int32[np.ndarray, "patch rank"]
    similarity: Float32[np.ndarray, "patch rank"]
    num_chosen_from: int
    num_sentences: int
    space: str


def split_sentences(text: str) -> list[str]:
    """The sentences of a report: of 3 to 60 words, at least one of them of letters."""
    found: list[str] = []
    carried = ""
    for piece in _END.split(text):
        carried = f"{carried} {piece}".strip()
        if _NO_END.search(carried):  # "A." opens a list, "approx." goes on
            continue
        found.append(carried)
        carried = ""
    found.append(carried)
    return [one for one in (" ".join(s.split()) for s in found) if _is_told(one)]


def _is_told(sentence: str) -> bool:
    words = sentence.split()
    enough = _FEWEST_WORDS <= len(words) <= _MOST_WORDS
    return enough and re.search(r"[A-Za-z]{3}", sentence) is not None


def sentences_of(reports: Mapping[str, Report]) -> dict[str, str]:
    """Sentence → the first case whose report has it; those that differ in case alone are one."""
    first: dict[str, tuple[str, str]] = {}
    for case_id in sorted(reports):
        for sentence in split_sentences(reports[case_id].text):
            first.setdefault(sentence.casefold(), (sentence, case_id))
    return dict(first.values())


def drawn(sentences: Mapping[str, str], most: int) -> dict[str, str]:
    """All of them, or a draw of `most` that each sentence's own hash decides."""
    order = sorted(sentences, key=lambda one: (seed_of("sentence", one), one))
    return {one: sentences[one] for one in sorted(order[:most])}


def nearest_sentences(
    features: Float[np.ndarray, "patch feature"],
    *,
    reports: str,
    stage1: str,
    stage2: str = "",
    most: int = 2000,
    device: str = "cpu",
) -> Nearest:
    """The nearest sentences of every row of features.

    Raises:
        CohortError: the reports hold no sentence.
        WeightsError: the encoders cannot be read, or take other features.
    """
    every = sentences_of(read_reports(reports))
    text_side = TextSide(stage1, device)
    chosen = _with_tokens(drawn(every, most), text_side)
    if not chosen:
        raise CohortError(f"{reports}: expected reports with sentences, got none")
    texts = list(chosen)
    ids = text_side.token_ids(texts, [f"{reports}: a sentence"] * len(texts))
    vectors = torch.from_numpy(text_side.vectors(ids)).to(device)
    side = PatchSide(stage1, stage2, device=device)
    patches = side.vectors(features)
    shown = min(SHOWN, len(texts))
    best = [
        (patches[start : start + _ROWS_AT_ONCE] @ vectors.T).topk(shown, dim=1)
        for start in range(0, len(patches), _ROWS_AT_ONCE)
    ]
    index = torch.cat([one.indices for one in best]).cpu().numpy()
    used, places = np.unique(index, return_inverse=True)
    return Nearest(
        texts=tuple(texts[at] for at in used),
        cases=tuple(chosen[texts[at]] for at in used),
        index=places.reshape(index.shape).astype(np.int32),
        similarity=torch.cat([one.values for one in best]).float().cpu().numpy(),
        num_chosen_from=len(texts),
        num_sentences=len(every),
        space=side.space,
    )


def _with_tokens(sentences: Mapping[str, str], side: TextSide) -> dict[str, str]:
    """Without those that the tokenizer finds nothing in."""
    found = side.tokenizer.token_ids(list(sentences))
    return {one: sentences[one] for one, ids in zip(sentences, found, strict=True) if len(ids)}
