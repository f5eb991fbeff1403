"""How the embedding job scales: plan and simulation from 1 GPU to 512, and where it bends."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from mstar.planning.plan import stage_plan
from mstar.planning.simulate import Run, simulate
from mstar.planning.stages import Job
from mstar.storage import objects

GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BEND_GAIN = 1.5
"""Beyond the bend twice the GPUs do less than this many times the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A number of GPUs."""

    num_gpus: int
    plan_s: float
    bottleneck: str
    run: Run

    @property
    def ratio(self) -> float:
        """Simulated over planned wall time."""
        return self.run.wall_s / self.plan_s


def scaled(job: Job, num_gpus: int) -> Job:
    """The same job on another number of the same nodes; below a node, on a part of one."""
    cluster = job.cluster
    per_node = min(cluster.gpus_per_node, num_gpus)
    share = per_node / cluster.gpus_per_node
    part = replace(
        cluster,
        num_gpus=num_gpus,
        gpus_per_node=per_node,
        cpu_cores_per_node=max(1, round(cluster.cpu_cores_per_node * share)),
        node_network_bytes_per_s=cluster.node_network_bytes_per_s * share,
    )
    return replace(job, cluster=part)


def scaling_curve(job: Job, counts: Sequence[int] = GPU_COUNTS, *, seed: int = 0) -> list[Point]:
    """Plan and simulation for each number of GPUs."""
    points = []
    for num_gpus in counts:
        part = scaled(job, num_gpus)
        plan = stage_plan(part, "embed")
        points.append(
            Point(
                num_gpus=num_gpus,
                plan_s=3600 * plan.wall_hours,
                bottleneck=plan.bottleneck,
                run=simulate(part, seed=seed),
            )
        )
    return points


def bend(points: Sequence[Point]) -> int:
    """The number of GPUs from which on twice as many gain less than `BEND_GAIN`; 0 for none."""
    for now, then in pairwise(points):
        doublings = then.num_gpus / now.num_gpus
        if now.run.wall_s / then.run.wall_s < BEND_GAIN ** (doublings / 2):
            return now.num_gpus
    return 0


def curve_table(points: Sequence[Point]) -> str:
    """The curve as Markdown."""
    lines = [
        "| GPUs | plan, hours | simulated, hours | simulated / plan | patches/s | GPUs busy | "
        "nodes lost | bottleneck of the plan |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in points:
        run = point.run
        lines.append(
            f"| {point.num_gpus} | {point.plan_s / 3600:.3f} | {run.wall_s / 3600:.3f} | "
            f"{point.ratio:.2f} | {run.patches_per_s:,.0f} | {run.gpu_busy_share:.0%} | "
            f"{run.losses} | {point.bottleneck} |"
        )
    return "\n".join(lines) + "\n"


def draw_curve(uri: str, lines: dict[str, Sequence[Point]], *, title: str) -> None:
    """Draw patches per second over GPUs, simulated and planned, beside perfect scaling."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    for label, points in lines.items():
        counts = [point.num_gpus for point in points]
        done = points[0].run.done_patches
        (drawn,) = axes.plot(counts, [p.run.patches_per_s for p in points], "o-", label=label, ms=4)
        planned = [done / point.plan_s for point in points]
        axes.plot(counts, planned, "--", color=drawn.get_color(), lw=1)
    first = next(iter(lines.values()))
    perfect = [first[0].run.patches_per_s * point.num_gpus for point in first]
    axes.plot([p.num_gpus for p in first], perfect, ":", color="grey", label="as 1 GPU, times N")
    axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="patches/s", title=title)
    axes.set_xticks(GPU_COUNTS, [str(count) for count in GPU_COUNTS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.text(
        0.99, 0.02, "simulated; dashed: the plan", transform=axes.transAxes, ha="right", fontsize=8
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png", metadata={"Software": None})
    plt.close(figure)
    objects.write_whole(uri, buffer.getvalue())
