"""What a job says at its end: one screen, and the same as numbers for the tracker."""

from mstar.embed.pending import Standing
from mstar.embed.results import Tally
from mstar.training.progress import format_duration

NUM_REASONS = 8


def summary(
    job: str,
    out: str,
    standing: Standing,
    tally: Tally,
    *,
    elapsed_s: float,
    failures: str,
    interrupted: bool = False,
) -> str:
    """The end of a job on one screen."""
    rate = tally.patches / elapsed_s if elapsed_s > 0 else 0.0
    way_on = "; run it again to go on" if interrupted else ""
    lines = [
        f"{job}: {_verdict(standing, interrupted)} in {format_duration(elapsed_s)}{way_on}",
        f"  slides    {standing.total:,}: {standing.done:,} done ({tally.done:,} by this run), "
        f"{standing.failed:,} failed, {standing.skipped:,} skipped, {standing.pending:,} left",
        f"  patches   {tally.patches:,} by this run, {tally.unreadable:,} unreadable, "
        f"{rate:,.1f} patches/s",
    ]
    if tally.encode_wait_s:
        lines.append(
            f"  waited    for the encoder {tally.encode_wait_s:,.1f} s, for pixels "
            f"{tally.input_wait_s:,.1f} s"
        )
    if tally.bytes_fetched:
        lines.append(f"  fetched   {tally.bytes_fetched / 1e6:,.1f} MB{_share(tally)}")
    if tally.warned:
        lines.append(
            f"  doubtful  {tally.warned:,} slides whose mpp disagrees with what else they say; "
            f"`mstar doctor --slides …` shows them"
        )
    lines.append(f"  output    {out}")
    if standing.reasons:
        lines.append(f"  failures  {failures}")
        worst = sorted(standing.reasons.items(), key=lambda item: -item[1])[:NUM_REASONS]
        lines += [f"            {count:,} × {kind}" for kind, count in worst]
    return "\n".join(lines)


def final_metrics(standing: Standing, tally: Tally, *, elapsed_s: float) -> dict[str, float]:
    """The same numbers for the tracker."""
    return {
        "slides_total": float(standing.total),
        "slides_done": float(standing.done),
        "slides_failed": float(standing.failed),
        "slides_skipped": float(standing.skipped),
        "patches": float(tally.patches),
        "unreadable_patches": float(tally.unreadable),
        "elapsed_s": elapsed_s,
        "patches_per_s": tally.patches / elapsed_s if elapsed_s > 0 else 0.0,
        "encode_wait_s": tally.encode_wait_s,
        "input_wait_s": tally.input_wait_s,
        "bytes_fetched": tally.bytes_fetched,
        "slide_bytes": float(tally.slide_bytes),
        "slides_doubtful": float(tally.warned),
    }


def _share(tally: Tally) -> str:
    if not tally.slide_bytes:
        return ""
    return f", {tally.bytes_fetched / tally.slide_bytes:.2f} × the slides' size"


def _verdict(standing: Standing, interrupted: bool) -> str:
    if interrupted:
        return "interrupted"
    if standing.pending:
        return "not finished"
    if standing.failed or standing.skipped:
        return f"complete with {standing.failed + standing.skipped:,} exclusions"
    return "complete"
