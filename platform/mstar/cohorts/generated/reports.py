"""Report texts: a header, the findings in random order, clauses that tell nothing, OCR noise.

Each factor is stated once, or not at all (a share of SILENCE · noise of the reports). What is
stated is true for a share `strength · (1 - ERROR · noise)` of them; the others name a level drawn
at random. So strength 0 makes every statement worthless without changing how reports look. The
pathway and the hazard are told in thirds. Fillers follow until the text reaches a length that was
drawn beforehand, so that the length does not depend on what the findings say.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, Purpose, rng_of
from mstar.cohorts.generated.grammar import (
    CANCER_TYPE_FRAMES,
    CANCER_TYPE_PHRASES,
    CHOICES,
    FILLERS,
    FINDINGS,
    HEADERS,
    OCR_CONFUSIONS,
)
from mstar.data.tables import write_table

SILENCE = 0.06
ERROR = 0.06
OCR_ERRORS_PER_CHAR = 0.004
LENGTH_CHARS = (700, 2000)
LINE_CHARS = (64, 96)
_HYPHENATED = 0.3  # share of the lines that end within a word

_PATHWAY_CUTS = (1 / 3, 2 / 3)
_HAZARD_CUTS = (-0.43, 0.43)  # thirds of a normal
_SLOT = re.compile(r"\{[a-z0-9]+\}")


def write_reports(uri: str, config: GenerateConfig, cases: Iterable[CaseFactors]) -> int:
    """Write `case_id,text` of every case that has a report; returns how many."""
    rows = [(case.case_id, compose(config, case)) for case in cases if case.has_report]
    columns = {"case_id": [row[0] for row in rows], "text": [row[1] for row in rows]}
    write_table(uri, pa.table({name: pa.array(c, pa.string()) for name, c in columns.items()}))
    return len(rows)


def compose(config: GenerateConfig, case: CaseFactors) -> str:
    """The report of a case, as it comes out of text recognition."""
    rng = rng_of(config, Purpose.REPORT, case.index)
    length = int(rng.integers(*LENGTH_CHARS))
    header = _fill(rng, _pick(rng, HEADERS))
    findings = [text for text in _findings(config, case, rng) if text]
    fillers = [_fill(rng, FILLERS[i]) for i in rng.permutation(len(FILLERS))]
    body = [*findings, fillers.pop(), fillers.pop()]
    body = [body[i] for i in rng.permutation(len(body))]
    size = len(header) + sum(map(len, body))
    while size < length:
        body.append(fillers.pop() if fillers else _fill(rng, _pick(rng, FILLERS)))
        size += len(body[-1])
    text = header + _broken(rng, " ".join(body))
    return _misread(rng, text, OCR_ERRORS_PER_CHAR * config.noise)


def compose_shown(config: GenerateConfig, case: CaseFactors) -> str:
    """The findings of the same report that a slide can show, as if it was filtered to them.

    Clean of misreadings; empty where the report is silent about all of them.
    """
    rng = rng_of(config, Purpose.REPORT, case.index)
    rng.integers(*LENGTH_CHARS)
    _fill(rng, _pick(rng, HEADERS))
    told = zip(levels_of(config, case), _findings(config, case, rng), strict=True)
    findings = [text for factor, text in told if text and factor != "hazard"]
    return " ".join(findings[at] for at in rng.permutation(len(findings)))


def levels_of(config: GenerateConfig, case: CaseFactors) -> dict[str, tuple[int, int]]:
    """Factor → (the level that is true, the number of levels), as reports tell them."""
    return {
        "cancer_type": (config.cancer_types.index(case.cancer_type), config.num_cancer_types),
        "grade": (case.grade - 1, 3),
        "mutation": (int(case.mutation), 2),
        "pathway": (bisect_right(_PATHWAY_CUTS, case.pathway), 3),
        "hazard": (bisect_right(_HAZARD_CUTS, case.hazard), 3),
    }


def _findings(config: GenerateConfig, case: CaseFactors, rng: np.random.Generator) -> list[str]:
    """One sentence a factor, empty where the report is silent."""
    sentences = []
    for factor, (level, num_levels) in levels_of(config, case).items():
        silent, told = rng.uniform(size=2)
        other = int(rng.integers(num_levels))
        true = told < config.strength_in_reports * (1 - ERROR * config.noise)
        sentence = _sentence(config, rng, factor, level if true else other)
        sentences.append("" if silent < SILENCE * config.noise else sentence)
    return sentences


def _sentence(config: GenerateConfig, rng: np.random.Generator, factor: str, level: int) -> str:
    if factor != "cancer_type":
        return _pick(rng, FINDINGS[factor][level])
    phrase = _pick(rng, CANCER_TYPE_PHRASES[config.cancer_types[level]])
    return _pick(rng, CANCER_TYPE_FRAMES).format(phrase)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _fill(rng: np.random.Generator, template: str) -> str:
    """Numbers and letters for the slots: {n} 1 to 9, {nn} 10 to 99, {l} A to F, or a choice."""

    def value(match: re.Match[str]) -> str:
        slot = match.group()
        if slot in CHOICES:
            return _pick(rng, CHOICES[slot])
        if slot == "{l}":
            return _pick(rng, "ABCDEF")
        return str(rng.integers(1, 10) if slot == "{n}" else rng.integers(10, 100))

    return _SLOT.sub(value, template)


def _broken(rng: np.random.Generator, text: str) -> str:
    """Broken into lines, some within a word, as scanned reports are."""
    width, lines = int(rng.integers(*LINE_CHARS)), []
    while len(text) > width:
        at = text.rfind(" ", 0, width)
        inside = text[at + 1 : width - 1]
        if rng.uniform() < _HYPHENATED and len(inside) > 3 and text[at + 1 : width + 2].isalpha():
            lines.append(text[: width - 1] + "-")
            text = text[width - 1 :]
        else:
            lines.append(text[:at])
            text = text[at + 1 :]
    return "\n".join([*lines, text])


def _misread(rng: np.random.Generator, text: str, rate: float) -> str:
    """Characters taken for others, each with probability `rate`, where there is one to take."""
    places = np.flatnonzero(rng.uniform(size=len(text)) < rate)
    letters = list(text)
    for place in places:
        letters[place] = OCR_CONFUSIONS.get(letters[place], letters[place])
    return "".join(letters)
