"""Cleaning of report text, limited to what can be stated: one table of named steps.

Nothing is rewritten, translated or guessed: a step removes characters or whole passages, or turns a
line break into a space. The steps run in order, again and again until none changes anything, so
cleaning a cleaned report changes nothing. (The paper had its reports rewritten by a language
model; scores on text cleaned here are not comparable with its scores.)

A passage is a line, or a sentence that ends in `.`, `!` or `?` and a space. The public TCGA-Reports
table is flat: its makers put a full stop after every line and joined the lines with spaces.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

# a hyphen at a line's end is the word's own after these, and the printer's otherwise
HYPHENATED = frozenset("well poorly moderately non high low semi self post pre half mid".split())
# no sentence ends in these: a full stop after one of them was put there for a line break
NEVER_LAST = "the an of and or with from by for which that is are was were its their into".split()
MIN_REPEATED_WORDS = 5  # shorter passages (headings, "Negative.") are repeated on purpose

# Each matches a whole passage, its outer punctuation stripped, upper or lower case.
BOILERPLATE = {
    "page number": r"(page|pg\.?) ?\d{1,3}( ?(of|/) ?\d{1,3})?",
    "continued": r"(report )?continued( (on|from) (the )?(next|previous|prior) page)?",
    "end of report": r"end of( the)? (pathology )?report",
    "title": r"(final )?(surgical|anatomic|anatomical) pathology( final)?( consultation)? report",
    "redacted": r"[\[(<]?(redacted|de-?identified)[\])>]?",
    "masked": r"[X_*#\d\[\] /-]*(X{3,}|_{3,}|\*{3,})[X_*#\d\[\] /-]*",
    "barcode": r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}[A-Z0-9-]*",
    "uuid": r"(UUID ?:? ?)?[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{12}",
    "signature": r"(report )?(electronically|digitally) signed( out)?( by)?[ :X*_-]*",
    "printed": r"(printed|transcribed|dictated) (by|on|at)[ :X*_\d/-]*",
    "rule": r"[-_=*~#+. ]{4,}",
}
# A passage that opens with one of these and has nothing else but labels, codes and masked values.
LABELS = (
    r"(patient|pt\.?)('s)? ?(name|id|identifier|identification)|(sur|fore|first|last )?name|"
    r"MRN|(medical|med\.?) (record|rec\.?) ?(number|no\.?|#)?|MR ?#|SSN|"
    r"(accession|account|case|specimen|order|requisition) ?(number|no\.?|#|id)|"
    r"(date of )?birth( ?date)?|D\.?O\.?B\.?|"
    r"(date|time) ?(of|/time)? ?(collected|received|reported|signed|printed|procedure|service|"
    r"surgery|collection|receipt|report)|(collected|received|reported|signed|printed) ?(on|date)?|"
    r"(attending|referring|submitting|ordering) ?(physician|surgeon|pathologist)|UUID|UID"
)

_PASSAGE_END = re.compile(r"((?<=[.!?]) +|\n+)")
_BOILERPLATE = tuple(re.compile(pattern, re.IGNORECASE) for pattern in BOILERPLATE.values())
_LABEL = re.compile(rf"(?<!\w)({LABELS})(?!\w) ?:?", re.IGNORECASE)
_CODE = re.compile(r"(?<!\w)([A-Z]{0,3}[-.]?\d[\dA-Z./:-]*|X+|redacted)(?!\w)", re.IGNORECASE)
_NEVER_LAST = re.compile(rf"(?<=[ \n])({'|'.join(NEVER_LAST)})\. (?=\w)")
_OUTER = " \t.,;:*-()[]"


def drop_invisible(text: str) -> str:
    """Without control and formatting characters (soft hyphens, byte order marks …)."""
    lines = re.sub(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", "\n", text)
    unseen = {c for c in set(lines) - {"\n", "\t"} if unicodedata.category(c) in ("Cc", "Cf")}
    return lines.translate(dict.fromkeys(map(ord, unseen))) if unseen else lines


def tidy_spaces(text: str) -> str:
    """One space between words, none at the ends of lines, one blank line at most."""
    spaced = re.sub(r" ?\n ?", "\n", re.sub(r"[^\S\n]+", " ", text))
    return re.sub(r"\n{3,}", "\n\n", spaced).strip()


def drop_boilerplate(text: str) -> str:
    """Without passages that are a page number, a title, an empty form field … (`BOILERPLATE`)."""
    return _without(text, _is_boilerplate)


def drop_repeats(text: str) -> str:
    """Without passages of five words and more that were there before, letters and digits alike."""
    seen: set[str] = set()

    def repeated(passage: str) -> bool:
        words = re.findall(r"\w+", passage.casefold())
        key = " ".join(words)
        if len(words) < MIN_REPEATED_WORDS:
            return False
        known = key in seen
        seen.add(key)
        return known

    return _without(text, repeated)


def join_hyphenated(text: str) -> str:
    """Words that a line's end cut in two are whole again; `well-` and its like keep the hyphen."""

    def joined(match: re.Match[str]) -> str:
        hyphen = "-" if match[1].lower() in HYPHENATED else ""
        return f"{match[1]}{hyphen}"

    return re.sub(r"\b([A-Za-z]*[a-z])-(?:\n|\. )(?=[a-z])", joined, text)


def mend_line_breaks(text: str) -> str:
    """A line that goes on in lower case is one with the next."""
    return re.sub(r"(?<=[^\s.:;!?])\n(?=[a-z]{2})", " ", text)


def mend_line_stops(text: str) -> str:
    """Without the full stops of flattened lines, where no sentence can end: `of. the`, `,. `."""
    return re.sub(r"([,;(/&])\. (?=\w)", r"\1 ", _NEVER_LAST.sub(r"\1 ", text))


STEPS: tuple[Callable[[str], str], ...] = (
    drop_invisible,
    tidy_spaces,
    drop_boilerplate,
    drop_repeats,
    join_hyphenated,
    mend_line_breaks,
    mend_line_stops,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanedText:
    """A cleaned report and the names of the steps that changed it."""

    text: str
    changed_by: frozenset[str]

    def __repr__(self) -> str:
        """Without the text: reports are not shown in logs."""
        return f"CleanedText({len(self.text)} characters, {sorted(self.changed_by)})"


def run_steps(text: str) -> CleanedText:
    """Run the table of steps until nothing changes any more."""
    changed_by: set[str] = set()
    while True:
        before = text
        for step in STEPS:
            after = step(text)
            if after != text:
                changed_by.add(step.__name__)
            text = after
        if text == before:  # every step shortens the text or has fewer breaks: this ends
            return CleanedText(text=text, changed_by=frozenset(changed_by))


def clean_report(text: str) -> str:
    """A report's text after the table of steps; cleaning it again changes nothing."""
    return run_steps(text).text


def _is_boilerplate(passage: str) -> bool:
    bare = passage.strip(_OUTER)
    if not bare:
        return len(passage.strip()) > 3  # a ruled line, not the full stop of a list
    return any(pattern.fullmatch(bare) for pattern in _BOILERPLATE) or _is_empty_form(bare)


def _is_empty_form(passage: str) -> bool:
    """Labels of a form with nothing but codes and masked values: `Name: XXX  MRN: 123-45`."""
    if _LABEL.match(passage) is None:
        return False
    return not _CODE.sub(" ", _LABEL.sub(" ", passage)).strip(_OUTER + "/#_")


def _without(text: str, unwanted: Callable[[str], bool]) -> str:
    """The text without some passages; lines stay apart."""
    pieces = _PASSAGE_END.split(text)  # passage, gap, passage, gap, …, passage
    kept: list[str] = []
    for passage, gap in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        if not unwanted(passage):
            kept += [passage, gap]
        elif kept:
            kept[-1] = max(kept[-1], gap, key=lambda g: (g.count("\n"), len(g)))
    return "".join(kept).strip()
