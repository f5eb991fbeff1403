"""A plan as one screen, and as JSON."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mstar.planning.config import Inputs
from mstar.planning.phases import SENDING
from mstar.planning.plan import StagePlan, wanted_gb_per_s_per_gpu
from mstar.planning.rates import RATE_NAMES, left_out
from mstar.planning.simulate import Run
from mstar.planning.stages import Job, num_fits, num_shards

TOLERANCE = 0.2
"""How far plan and simulation may be apart, as a share of the plan; tested."""

_HEAD = ("stage", "reads", "writes", "requests", "GPU-hours", "hours", "GPU busy", "bottleneck")
_WIDTHS = (8, 10, 10, 9, 10, 8, 9, 22)


def plan_screen(inputs: Inputs, plan: Sequence[StagePlan], run: Run | None) -> str:
    """The plan for a terminal."""
    job = inputs.job
    lines = [*_preface(inputs), "", _row(_HEAD)]
    lines += [_row(_cells(stage)) for stage in plan]
    lines += [_row(_totals(plan)), ""]
    lines += _costs(job, plan)
    lines += _details(job, plan)
    if run is not None:
        lines += ["", *simulated_lines(plan[0], run)]
    lines += ["", *_rates(inputs)]
    return "\n".join(lines)


def plan_json(inputs: Inputs, plan: Sequence[StagePlan], run: Run | None) -> dict[str, Any]:
    """The plan for programs; units are in the names."""
    job = inputs.job
    found: dict[str, Any] = {
        "workload": _plain(job.work, "sizes"),
        "cluster": _plain(job.cluster),
        "settings": _plain(job.settings),
        "rates": {name: getattr(job.rates, name) for name in RATE_NAMES},
        "sources": dict(job.rates.sources),
        "stages": [_stage_json(stage) for stage in plan],
    }
    if run is not None:
        found["simulated"] = {**_plain(run), "gpu_busy_share": run.gpu_busy_share}
    return found


def simulated_lines(embed: StagePlan, run: Run) -> list[str]:
    """Plan and simulation side by side."""
    ratio = run.wall_s / (3600 * embed.wall_hours)
    verdict = "agree" if abs(ratio - 1) <= TOLERANCE else "DISAGREE: trust neither"
    return [
        f"simulated embed: {run.wall_s / 3600:.2f} h, {ratio:.2f} of the plan ({verdict} within "
        f"{TOLERANCE:.0%}); GPUs busy {run.gpu_busy_share:.0%}; {run.losses} nodes lost, "
        f"{run.lost_patches:,} patches done again"
    ]


def bytes_text(count: float) -> str:
    """Bytes as people say them."""
    for name, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return (
                f"{count / size:.3g} {name}"
                if count < 1e3 * size
                else f"{count / size:,.0f} {name}"
            )
    return f"{count:.0f} B"


def count_text(count: float) -> str:
    """Counts likewise."""
    for name, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 10 * size or (name != "k" and count >= size):
            return f"{count / size:.3g} {name}"
    return f"{count:.0f}"


def _preface(inputs: Inputs) -> list[str]:
    work, cluster = inputs.job.work, inputs.job.cluster
    spot = f", {cluster.spot_share:.0%} of them spot" if cluster.spot_share else ""
    return [
        f"{work.num_slides:,} slides, {work.num_patches:,} patches, {work.num_cases:,} cases, "
        f"{bytes_text(work.slide_bytes)} ({work.source})",
        f"{cluster.num_gpus} × {cluster.gpu} in {cluster.num_nodes} node(s){spot}, "
        f"{cluster.cpu_cores_per_node} cores and {8 * cluster.node_network_bytes_per_s / 1e9:g} "
        "Gb/s a node",
    ]


def _row(cells: Sequence[str]) -> str:
    return "  ".join(
        f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)
    ).rstrip()


def _cells(stage: StagePlan) -> tuple[str, ...]:
    return (
        stage.name,
        bytes_text(stage.read_bytes),
        bytes_text(stage.written_bytes),
        count_text(stage.reads + stage.writes),
        f"{stage.gpu_hours:,.1f}",
        f"{stage.wall_hours:,.2f}",
        f"{stage.gpu_busy_share:.0%}",
        stage.bottleneck,
    )


def _totals(plan: Sequence[StagePlan]) -> tuple[str, ...]:
    return (
        "together",
        bytes_text(sum(stage.read_bytes for stage in plan)),
        bytes_text(sum(stage.written_bytes for stage in plan)),
        count_text(sum(stage.reads + stage.writes for stage in plan)),
        f"{sum(stage.gpu_hours for stage in plan):,.1f}",
        f"{sum(stage.wall_hours for stage in plan):,.2f}",
        "",
        "",
    )


def _costs(job: Job, plan: Sequence[StagePlan]) -> list[str]:
    prices = job.cluster.prices
    if prices is None:
        return ["cost: not printed, since no prices were given (--price-gpu-hour, --price-date)"]
    lines = [f"cost in {prices.currency}, at the prices that you gave for {prices.date}:"]
    for stage in plan:
        assert stage.cost is not None
        mixed = "" if stage.cost.mixed is None else f", with spot nodes {stage.cost.mixed:,.2f}"
        requests = f", of that requests {stage.cost.requests:,.2f}"
        lines.append(f"  {stage.name:<8}on demand {stage.cost.on_demand:,.2f}{mixed}{requests}")
    on_demand = sum(stage.cost.on_demand for stage in plan if stage.cost)
    mixed_costs = [
        stage.cost.mixed for stage in plan if stage.cost and stage.cost.mixed is not None
    ]
    mixed = f", with spot nodes {sum(mixed_costs):,.2f}" if mixed_costs else ""
    lines.append(f"  together on demand {on_demand:,.2f}{mixed}")
    if not mixed_costs and job.cluster.spot_share:
        lines.append("  without --price-gpu-hour-spot there is no cost with spot nodes")
    return lines


def _details(job: Job, plan: Sequence[StagePlan]) -> list[str]:
    """What the table has no room for."""
    lines = []
    for stage in plan:
        rate = f"{stage.read_gb_per_s_per_gpu:.3g} GB/s read per GPU"
        if stage.name == "embed":
            wanted = wanted_gb_per_s_per_gpu(job)
            lines.append(f"embed: {rate}; it would take {wanted:.2g} if nothing held it up")
        elif stage.name == "targets":
            idle = sum(p.timing.wall_s for p in stage.phases if not p.phase.uses_devices) / 3600
            lines.append(
                f"targets: {num_shards(job):,.0f} shards or more; {idle:.2f} h of it is writing "
                "shards, for which no GPU is needed: another cluster can do it"
            )
        elif stage.name == "stage1" and job.settings.stage1_batch_cases < stage.num_gpus:
            batch = job.settings.stage1_batch_cases
            lines.append(f"stage1: a batch of {batch} cases keeps no more than {batch} GPUs busy")
        elif stage.name == "stage2":
            batch = job.settings.stage2_batch_patches
            per_gpu = -(-batch // job.cluster.num_gpus)
            note = ", most of it spent on sending" if stage.bottleneck == SENDING else ""
            lines.append(f"stage2: {rate}; {per_gpu} patches of a GPU in a step{note}")
        elif stage.name == "sweep":
            lines.append(f"sweep: {num_fits(job.settings):,} heads are trained")
    return lines


def _rates(inputs: Inputs) -> list[str]:
    """Where the numbers are from, least certain first."""
    rates = inputs.job.rates
    kinds = Counter(rates.kind_of(name) for name in RATE_NAMES)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    lines = [f"rates: {counts}. Those that were not measured:"]
    for name in RATE_NAMES:
        if rates.kind_of(name) != "measured":
            value = getattr(rates, name)
            lines.append(f"  {name} = {value:.4g}  {rates.sources[name]}")
    if inputs.measured is not None and (
        unused := left_out(inputs.job.cluster.gpu, inputs.measured)
    ):
        lines.append(
            f"of the rate file, made on {inputs.measured.device}, these are not used for "
            f"{inputs.job.cluster.gpu}: {', '.join(unused)}"
        )
    return lines


def _stage_json(stage: StagePlan) -> dict[str, Any]:
    names = ("wall_hours", "undisturbed_hours", "gpu_hours", "read_bytes", "written_bytes")
    names += ("reads", "writes", "bottleneck", "gpu_busy_share", "read_gb_per_s_per_gpu")  # type: ignore[assignment]
    found: dict[str, Any] = {"name": stage.name, **{name: getattr(stage, name) for name in names}}
    found["cost"] = None if stage.cost is None else _plain(stage.cost)
    found["phases"] = [
        {
            "name": part.phase.name,
            "wall_s": part.timing.wall_s,
            "bottleneck": part.timing.bottleneck,
            "busy_s": dict(part.timing.busy_s),
        }
        for part in stage.phases
    ]
    return found


def _plain(value: Any, *without: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in dataclasses.fields(value):
        if part.name not in without:
            inner = getattr(value, part.name)
            found[part.name] = _plain(inner) if dataclasses.is_dataclass(inner) else inner
    return found
