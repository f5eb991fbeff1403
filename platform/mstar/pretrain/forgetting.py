"""What a continued run has changed: numbers before and after, as JSON and as a small page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mstar.config import to_dict
from mstar.storage import objects

JSON_FILE, PAGE_FILE = "forgetting.json", "forgetting.md"
_LINES_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One set of cases or patches on which both models were measured.

    before, after: by metric, of the run gone on from and of the new one.
    notes: what one has to know to read them.
    """

    title: str
    size: int
    unit: str
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def shared(self) -> list[str]:
        """Metrics that both have."""
        return [name for name in self.before if name in self.after]


def write(out: str, init_from: str, parts: Sequence[Part]) -> None:
    """Both files; the JSON last, for it says that the comparison was made."""
    page = "\n".join(_page(init_from, parts)) + "\n"
    objects.write_whole(objects.join(out, PAGE_FILE), page.encode())
    content = {"init_from": init_from, "parts": [to_dict(part) for part in parts]}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    objects.write_whole(objects.join(out, JSON_FILE), text.encode())


def summary_lines(out: str, parts: Sequence[Part], first: Sequence[str]) -> Iterator[str]:
    """A few lines for the end of the job: the metrics named first, where there are any."""
    for part in parts:
        yield f"  {part.title}: {part.size:,} {part.unit}"
        shown = [name for name in first if name in part.shared] or part.shared
        for name in shown[:_LINES_SHOWN]:
            before, after = part.before[name], part.after[name]
            yield f"    {name:<44} {before:.3f} → {after:.3f} ({after - before:+.3f})"
        for note in part.notes:
            yield f"    {note}"
    yield f"    all of them: {objects.join(out, PAGE_FILE)}"


def _page(init_from: str, parts: Sequence[Part]) -> Iterator[str]:
    yield "# What this run has changed"
    yield ""
    yield f"It started from `{init_from}`. Before: the encoders of that run. After: those of this."
    for part in parts:
        yield from ("", f"## {part.title} ({part.size:,} {part.unit})", "")
        for note in part.notes:
            yield f"- {note}"
        if part.shared:
            yield from ("", "| metric | before | after | change |", "|---|---|---|---|")
        for name in part.shared:
            before, after = part.before[name], part.after[name]
            yield f"| `{name}` | {before:.4f} | {after:.4f} | {after - before:+.4f} |"
