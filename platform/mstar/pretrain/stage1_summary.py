"""The beginning of a stage-1 run in a line, and its end on one screen."""

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

from mstar.pretrain.batch_plan import MODALITIES
from mstar.pretrain.stage1_cases import Stage1Cases
from mstar.pretrain.stage1_config import Stage1Config
from mstar.training.sessions import Session

NAMES = {"wsi": "slide", "text": "report", "gene": "RNA"}
_DIRECTIONS = tuple(f"{first}_to_{second}" for first, second in permutations(MODALITIES, 2))
_MOST_BAD = 5


def header(config: Stage1Config, cases: Stage1Cases, num_steps: int, session: Session) -> str:
    """What is about to be trained, in a line."""
    return (
        f"stage1: {len(cases.train):,} cases to train on, {len(cases.val):,} to validate, "
        f"{cases.held_out:,} held out · {num_steps:,} steps in {config.epochs:,} epochs "
        f"· {session.world_size} rank(s) on {session.device.type}, "
        f"{config.engine.engine} {config.engine.precision}"
    )


def summary(config: Stage1Config, facts: Mapping[str, Any], elapsed_s: float | None) -> list[str]:
    """The lines; `elapsed_s` is None when the run was complete before."""
    took = "was complete before" if elapsed_s is None else f"complete in {elapsed_s:,.0f} s"
    return [
        f"stage1: {took}",
        f"  cases     {facts['train_cases']:,} trained, {facts['val_cases']:,} validated, "
        f"{facts['held_out_cases']:,} held out, {facts['cases_with_too_few_modalities']:,} with "
        "fewer than two modalities",
        *_bad_lines(facts),
        f"  exported  step {facts['step']:,}; the run ended at {facts['steps_done']:,} of "
        f"{facts['steps']:,}; chosen by: {facts['selected_by']}",
        *_recall_lines(facts["retrieval"]),
        *_zero_shot_lines(facts["validation"]),
        *_notes(config, facts),
        f"  output    {config.out}: {', '.join(_exports(config))} (.safetensors), stage1.json, "
        "curves.png",
    ]


def _exports(config: Stage1Config) -> list[str]:
    names = {"wsi": "aggregator", "text": "text_encoder + tokenizer/", "gene": "gene_encoder"}
    return [names[name] for name in MODALITIES if name in config.on]


def _bad_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    bad = facts["bad_inputs"] + facts["found_bad"]
    for one in bad[:_MOST_BAD]:
        yield f"  left out  {one['case_id']} {one['modality']}: {one['reason']}"
    if len(bad) > _MOST_BAD:
        yield f"            … and {len(bad) - _MOST_BAD:,} more inputs (stage1.json)"


def _recall_lines(directions: Mapping[str, Any]) -> Iterator[str]:
    """Every recall with its interval; then what is left of it beyond the cancer type."""
    if not directions:
        yield "  held out  nothing was measured: too few validation cases with two modalities"
        return
    yield "  held out  recall of the validation cases [95 % interval], and the median rank"
    ks = [one["k"] for one in next(iter(directions.values()))["overall"]]
    yield "    " + "".join([f"{'':<15}", *(f"{f'R@{k}':<19}" for k in ks), "rank of"])
    ordered = {name: directions[name] for name in _DIRECTIONS if name in directions}
    for name, found in ordered.items():
        cells = "".join(f"{_cell(one):<19}" for one in found["overall"])
        yield f"    {_named(name):<15}{cells}{found['median_rank']:g} of {found['num_queries']:,}"
    yield "  beyond    overall R@10, and what knowing only the cancer type gives at best; within"
    yield "            the case's own type, and what chance gives there"
    for name, found in ordered.items():
        ten = next(one for one in found["overall"] if one["k"] == 10)
        within = [one for one in found["within"] if one["k"] in (1, 5)]
        cells = "  ".join(f"R@{one['k']} {_cell(one)} chance {one['chance']:.2f}" for one in within)
        yield f"    {_named(name):<15}{_cell(ten)} type {ten['ceiling']:.2f} | {cells}"


def _named(direction: str) -> str:
    return " → ".join(NAMES[name] for name in direction.split("_to_"))


def _cell(recall: Mapping[str, float]) -> str:
    return f"{recall['value']:.2f} [{recall['low']:.2f}, {recall['high']:.2f}]"


def _zero_shot_lines(found: Mapping[str, float]) -> Iterator[str]:
    if "val.zero_shot_balanced_accuracy" in found:
        yield (
            f"  zero-shot {found['val.zero_shot_balanced_accuracy']:.2f} balanced accuracy of the "
            f"cancer type (chance {found['val.zero_shot_chance']:.2f})"
        )


def _notes(config: Stage1Config, facts: Mapping[str, Any]) -> Iterator[str]:
    """What a reader of these figures must know."""
    if facts["retrieval"]:
        yield "  note      these cases also chose the exported step, so the figures are optimistic"
        smallest = min(one["num_queries"] for one in facts["retrieval"].values())
        certain = [k for k in (10, 50) if k >= smallest]
        if certain:
            named = " and ".join(f"R@{k}" for k in certain)
            yield (
                f"  note      {named} of {smallest:,} cases is 1 whatever is learned; give more "
                "validation cases, or another --select-on"
            )
    absent = [NAMES[name] for name in MODALITIES if name not in config.on]
    if absent:
        without = " and ".join(absent)
        yield f"  note      trained without {without} (--modalities {config.modalities})"
    off = [name for name, weight in config.loss.weights().items() if not weight]
    if off:
        yield f"  note      trained without these losses (weight 0): {', '.join(off)}"
