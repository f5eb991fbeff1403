"""What `mstar targets` says at its end: one screen, and the same as numbers for the tracker."""

from mstar.pretrain.targets_config import TargetsConfig
from mstar.pretrain.targets_survey import Standing
from mstar.pretrain.targets_tally import TargetsTally
from mstar.storage import objects
from mstar.storage.ledger import FailureLedger
from mstar.training.progress import format_duration

NUM_REASONS = 8


def summary(
    config: TargetsConfig, standing: Standing, tally: TargetsTally, *, elapsed_s: float
) -> str:
    """The end of the teacher pass on one screen."""
    rate = tally.patches / elapsed_s if elapsed_s > 0 else 0.0
    lines = [
        f"targets: {_verdict(standing)} in {format_duration(elapsed_s)}",
        f"  cases     {standing.total:,}: {standing.done:,} done ({tally.done:,} by this run), "
        f"{standing.failed:,} failed, {len(standing.pending):,} left",
        f"  targets   {tally.patches:,} by this run in {tally.windows:,} windows, "
        f"{rate:,.1f} patches/s",
        f"  waited    for the aggregator {tally.teacher_s:,.1f} s, for features "
        f"{tally.read_wait_s:,.1f} s",
        f"  output    {objects.join(config.out, 'targets')}",
    ]
    if standing.reasons:
        lines.append(f"  failures  {_ledger_root(config.out)}")
        worst = sorted(standing.reasons.items(), key=lambda item: -item[1])[:NUM_REASONS]
        lines += [f"            {count:,} × {kind}" for kind, count in worst]
    return "\n".join(lines)


def final_metrics(standing: Standing, tally: TargetsTally, *, elapsed_s: float) -> dict[str, float]:
    """The same numbers for the tracker."""
    return {
        "cases_total": float(standing.total),
        "cases_done": float(standing.done),
        "cases_failed": float(standing.failed),
        "patches": float(tally.patches),
        "windows": float(tally.windows),
        "elapsed_s": elapsed_s,
        "patches_per_s": tally.patches / elapsed_s if elapsed_s > 0 else 0.0,
        "aggregator_s": tally.teacher_s,
        "input_wait_s": tally.read_wait_s,
    }


def failure_table(out: str) -> str:
    """The failures as tab-separated text: case, reason, whether a rerun tries again."""
    lines = ["case_id\tstage\tkind\tpermanent\tmessage"]
    for failure in FailureLedger(_ledger_root(out)).all():
        message = " ".join(failure.message.split())
        row = (failure.slide_id, failure.stage, failure.kind, str(failure.permanent), message)
        lines.append("\t".join(row))
    return "\n".join(lines) + "\n"


def _ledger_root(out: str) -> str:
    return objects.join(out, "targets", "failures")


def _verdict(standing: Standing) -> str:
    if standing.pending:
        return "not finished"
    if standing.failed:
        return f"complete with {standing.failed:,} exclusions"
    return "complete"
