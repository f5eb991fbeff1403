"""What `mstar cohort split` prints: parts and pretraining by cohort, and modality pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

from mstar.data.splits.leaks import PARTS
from mstar.data.splits.registry import SplitRegistry
from mstar.data.splits.schemes import Split

_COHORT_COLUMNS = ("cases", *PARTS, "no_part", "pretraining", "held_out_by_tasks")
_PAIR_COLUMNS = ("cases", "wsi_report", "wsi_rna", "report_rna", "total", "all_three")
_MAX_ROWS = 12


def registry_report(uri: str, state: str, registry: SplitRegistry) -> str:
    """One screen: the cohorts that are split, the others together, the pairs before and after."""
    counts = registry.counts
    split = counts["split_cohorts"]
    cohorts = {name: counts["cohorts"][name] for name in split}
    others = [count for name, count in counts["cohorts"].items() if name not in split]
    cohorts["all others"] = _sum(others)
    cohorts["total"] = _sum([*(counts["cohorts"].values())])
    pairs = {"all cases": counts["pairs_before"], "pretraining": counts["pairs_after"]}
    lines = [
        f"split registry {uri} ({state})",
        f"digest {registry.digest}",
        "",
        *_table("cohort", _COHORT_COLUMNS, cohorts),
        "",
        *_table("modality pairs", _PAIR_COLUMNS, {k: _with_total(v) for k, v in pairs.items()}),
        *_task_lines(counts["tasks"]),
    ]
    if not split:
        lines += ["", "No cohort is large enough to be split: see --cohorts and --min-cases."]
    return "\n".join(lines)


def split_report(uri: str, state: str, split: Split) -> str:
    """One screen: the size of each part by fold."""
    folds = {
        fold.name: {part: len(fold.cases_of(part)) for part in PARTS}
        for fold in split.folds[:_MAX_ROWS]
    }
    lines = [
        f"split {uri} ({state}): {split.scheme}, {len(split.folds)} folds",
        f"digest {split.digest}",
        "",
        *_table("fold", PARTS, folds),
    ]
    if len(split.folds) > _MAX_ROWS:
        lines.append(f"… and {len(split.folds) - _MAX_ROWS} more")
    for reason, count in split.facts["left_out"].items():
        lines += [f"left out: {count:,} cases, {reason}"] if count else []
    if split.facts.get("seen_in_pretraining"):
        seen = split.facts["seen_in_pretraining"]
        lines.append(f"WARNING: pretraining sees {seen:,} of the cases that are held out here")
    return "\n".join(lines)


def _task_lines(tasks: Mapping[str, int]) -> list[str]:
    """The tables that hold patients out, largest first."""
    if not tasks:
        return ["", "No task table with parts: nobody is held out besides the split cohorts."]
    ordered = sorted(tasks.items(), key=lambda item: (-item[1], item[0]))
    lines = ["", f"{len(tasks)} task tables hold patients of these cases out, by table:"]
    lines += [f"  {count:>7,}  {uri}" for uri, count in ordered[:_MAX_ROWS]]
    return lines + (
        [f"  … and {len(ordered) - _MAX_ROWS} more"] if len(ordered) > _MAX_ROWS else []
    )


def _table(head: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, int]]) -> list[str]:
    first = max(len(name) for name in (head, *rows))
    lines = [f"{head:<{first}}" + "".join(f"  {name:>{max(6, len(name))}}" for name in columns)]
    for name, row in rows.items():
        cells = "".join(f"  {row[column]:>{max(6, len(column))},}" for column in columns)
        lines.append(f"{name:<{first}}{cells}")
    return lines


def _sum(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {column: sum(count[column] for count in counts) for column in _COHORT_COLUMNS}


def _with_total(pairs: Mapping[str, Any]) -> dict[str, int]:
    return {**pairs, "total": pairs["wsi_report"] + pairs["wsi_rna"] + pairs["report_rna"]}
