"""The table and the figure of the ablation, and whether the method beats its controls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mstar.pretrain.ablate_arms import ARMS, INITIAL, METHOD, MUST_BEAT

# Two-sided 95 % points of Student's t, by degrees of freedom.
_T95 = (
    *(math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_NORMAL95 = 1.96
FEWEST_SEEDS = 5
GREY = "#777777"
PROBE_COLORS = {"linear": "#0072b2", "abmil": "#d55e00"}
PROBE_NAMES = {"linear": "linear probe", "abmil": "ABMIL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Area under the curve of one arm by one probe on one cohort."""

    seed: int
    arm: str
    probe: str
    auc: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over seeds and its 95 % interval by Student's t."""

    mean: float
    low: float
    high: float
    count: int


def interval(values: Float64[np.ndarray, " seed"]) -> Interval:
    """The mean and its interval; of fewer than two values an endless one."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean=mean, low=-math.inf, high=math.inf, count=count)
    degrees = count - 1
    point = _T95[degrees] if degrees < len(_T95) else _NORMAL95
    half = point * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(mean=mean, low=mean - half, high=mean + half, count=count)


def by_seed(scores: Sequence[Score], arm: str, probe: str) -> dict[int, float]:
    """Seed → area under the curve."""
    return {s.seed: s.auc for s in scores if s.arm == arm and s.probe == probe}


def paired(scores: Sequence[Score], arm: str, probe: str) -> Float64[np.ndarray, " seed"]:
    """The method less an arm, on each cohort."""
    method, other = by_seed(scores, METHOD, probe), by_seed(scores, arm, probe)
    return np.array([method[seed] - other[seed] for seed in sorted(method) if seed in other])


def verdict(scores: Sequence[Score]) -> dict[tuple[str, str], bool]:
    """(control, probe) → whether the method beats it: five seeds or more, interval above 0."""
    found = {}
    for arm in MUST_BEAT:
        for probe in probes_of(scores):
            values = paired(scores, arm, probe)
            if len(values):
                found[arm, probe] = len(values) >= FEWEST_SEEDS and interval(values).low > 0
    return found


def probes_of(scores: Sequence[Score]) -> list[str]:
    """The probes in the order of the table."""
    present = {score.probe for score in scores}
    return [name for name in PROBE_NAMES if name in present]


def arms_of(scores: Sequence[Score]) -> list[str]:
    """The arms in the order of the table."""
    present = {score.arm for score in scores}
    return [letter for letter in ARMS if letter in present]


def table(scores: Sequence[Score]) -> str:
    """One row an arm: area under the curve, and the method less the arm with its interval."""
    probes = probes_of(scores)
    head = ["arm", "what"]
    for probe in probes:
        head += [f"{PROBE_NAMES[probe]}: AUC", f"(a) − arm [95 %], {PROBE_NAMES[probe]}"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for arm in arms_of(scores):
        cells = [f"({arm})", ARMS[arm].what]
        for probe in probes:
            own = interval(np.array(list(by_seed(scores, arm, probe).values())))
            cells += [f"{own.mean:.3f}", _difference(scores, arm, probe)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(scores: Sequence[Score], arm: str, probe: str) -> str:
    values = paired(scores, arm, probe) if arm != METHOD else np.empty(0)
    if not len(values):
        return ""
    found = interval(values)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def initial_auc(scores: Sequence[Score]) -> Interval:
    """The initial encoder by the linear probe: how much it knows of what was never taught."""
    return interval(np.array(list(by_seed(scores, INITIAL, "linear").values())))


def initial_auc_fits(scores: Sequence[Score], bounds: tuple[float, float]) -> bool:
    """Whether the initial encoder is competent, and leaves something to be learnt."""
    return bounds[0] <= initial_auc(scores).mean <= bounds[1]


def summary(scores: Sequence[Score], *, bounds: tuple[float, float]) -> list[str]:
    """What holds and what does not, a line each."""
    initial, inside = initial_auc(scores), initial_auc_fits(scores, bounds)
    lines = [
        f"initial encoder: linear probe AUC {initial.mean:.3f} over {initial.count} cohorts, "
        f"{'within' if inside else 'OUTSIDE'} {bounds[0]} to {bounds[1]}"
    ]
    for (arm, probe), holds in verdict(scores).items():
        found = interval(paired(scores, arm, probe))
        said = "beats" if holds else "does NOT beat" if is_judged(scores) else "against"
        lines.append(
            f"(a) {said} ({arm}) by {PROBE_NAMES[probe]}: "
            f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}], {found.count} cohorts"
        )
    if not is_judged(scores):
        lines.append(f"not judged: fewer than {FEWEST_SEEDS} cohorts show nothing either way")
    return lines


def is_judged(scores: Sequence[Score]) -> bool:
    """Whether there are enough cohorts to say that the method beats its controls or does not."""
    return len({score.seed for score in scores}) >= FEWEST_SEEDS


def draw(scores: Sequence[Score], path: Path) -> None:
    """Left the areas under the curve, right the method less each arm; a dot a cohort."""
    arms, probes = arms_of(scores), probes_of(scores)
    figure = Figure(figsize=(10.5, 0.55 * len(arms) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for probe_number, probe in enumerate(probes):
        shift = (probe_number - (len(probes) - 1) / 2) * 0.28
        color = PROBE_COLORS[probe]
        for row, arm in enumerate(arms):
            values = np.array(list(by_seed(scores, arm, probe).values()))
            _row(left, values, row + shift, color)
            if arm != METHOD and len(differences := paired(scores, arm, probe)):
                _row(right, differences, row + shift, color)
        right.plot([], [], "D", ms=5, color=color, label=PROBE_NAMES[probe])
    left.set_yticks(range(len(arms)), [f"({arm}) {_short(ARMS[arm].what)}" for arm in arms])
    left.invert_yaxis()
    left.axvline(0.5, color=GREY, lw=1, ls=":")
    right.axvline(0.0, color=GREY, lw=1, ls=":")
    left.set_xlabel("AUC, planted factor, held-out cases")
    right.set_xlabel("(a) less the arm, by cohort; bar: 95 %")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    figure.savefig(path, dpi=130)


def _row(
    axes: Axes,
    values: Float64[np.ndarray, " seed"],
    height: float,
    color: str,
) -> None:
    found = interval(values)
    axes.plot(values, [height] * len(values), "o", ms=3, alpha=0.4, color=color)
    if math.isfinite(found.low):
        axes.plot([found.low, found.high], [height] * 2, "-", lw=2, color=color)
    axes.plot([found.mean], [height], "D", ms=5, color=color)


def _short(text: str, most: int = 44) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
