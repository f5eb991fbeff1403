"""What one study prints: the task as it was cut, the configuration, the result with interval."""

from collections import Counter
from collections.abc import Sequence

from mstar.config import to_dict
from mstar.data.task_data import TaskData
from mstar.downstream.config import SELECTION_METRICS, find_protocol, paper_trial, training_kind
from mstar.downstream.predictions import Predictions
from mstar.downstream.statistics.bootstrap import fold_estimate
from mstar.downstream.tasks_report import gene_remark
from mstar.downstream.train_config import TrainHeadConfig

FEWEST_CASES = 30
SHOWN = ("test", "external", "val")


def data_lines(data: TaskData) -> list[str]:
    """The task: samples, classes, folds, what was left out and why."""
    lines = [
        f"  {data.label_source}: {len(data.samples):,} samples of {len(set(data.patients)):,} "
        f"patients, {data.data_source}",
        f"  {data.match}",
        f"  split: {data.split_source}",
    ]
    if data.class_names:
        counts = Counter(sample.label for sample in data.samples)
        told = ", ".join(f"{name} {counts[code]}" for code, name in enumerate(data.class_names))
        lines.append(f"  classes: {told}")
    for fold in data.folds:
        sizes = f"{len(fold.train)} train, {len(fold.val)} validation, {len(fold.test)} test"
        lines.append(f"  fold {fold.name}: {sizes}")
    if data.genes is not None:
        lines.append(f"  {gene_remark(data.genes.facts)}")
    lines += [f"  left out: {count} ({reason})" for reason, count in data.dropped.items()]
    if data.leaked_patients:
        lines.append(f"  leak: {data.leaked_patients} patients; kept out of averages")
    return lines


def trial_lines(config: TrainHeadConfig, data: TaskData) -> list[str]:
    """The configuration, as it differs from the paper's, and the protocol's warning."""
    protocol = find_protocol(config.protocol)
    settled = protocol.settled(config.trial_config, training_kind(data.task.kind))
    paper, own = to_dict(paper_trial(config.head)), to_dict(settled)
    changed = ", ".join(f"{name} {own[name]}" for name in own if own[name] != paper[name])
    lines = [f"  configuration: {changed or 'the paper’s'}"]
    return [*lines, f"  {protocol.warning}"] if protocol.warning else lines


def result_lines(predictions: Sequence[Predictions], resamples: int) -> list[str]:
    """One line per part: the metric, its interval over patients, and what it rests on."""
    ordered = sorted(predictions, key=lambda one: SHOWN.index(one.part))
    return [_line(one, resamples) for one in ordered]


def _line(predictions: Predictions, resamples: int) -> str:
    facts = predictions.facts
    metric = SELECTION_METRICS[facts.kind]
    protocol = find_protocol(facts.protocol).name
    found = fold_estimate(metric, predictions.evaluated(), resamples=resamples, protocol=protocol)
    line = (
        f"  {predictions.part}: {metric} {found.value:.4f} ({found.level:.0%} interval "
        f"{found.low:.4f} to {found.high:.4f}), {found.patients:,} patients"
    )
    if found.num_classes:
        line += f", {found.classes} of {found.num_classes} classes present"
    if found.seeds > 1:
        line += f", {found.seeds} seeds, spread {found.seed_std:.4f}"
    if found.patients < FEWEST_CASES:
        line += f"; fewer than {FEWEST_CASES} patients: no claim"
    if facts.leaked_patients:
        line += f"; leak: {facts.leaked_patients} patients"
    return line + (f"; {facts.warning}" if facts.warning else "")
