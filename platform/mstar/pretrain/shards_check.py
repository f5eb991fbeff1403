"""`mstar shards check T`: whether finished shards are whole, shuffled and usable.

Exit codes: 0 sound, 1 something is wrong, 2 there are no shards to check.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from mstar.data.shards.check import Findings, ShardChecker, Statistic
from mstar.data.shards.format import ShardIndex, read_index, shards_folder
from mstar.errors import ConfigError, FeatureError
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode
from mstar.training.step_progress import to_stderr

_SHOWN = 20
_SAY_EVERY = 50  # shards


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsCheckConfig:
    """Check patch shards: counts, checksums, shuffle, targets, images."""

    shards: tyro.conf.Positional[str]
    """Output of `mstar targets`, or the folder shards/ in it; local or s3://."""
    decode: int = 1000
    """Images that are decoded, evenly over all rows; 0 = all."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.decode < 0:
            raise ConfigError(f"decode: expected at least 0, got {self.decode}")


def run(config: ShardsCheckConfig) -> int:
    """Run `mstar shards check` and return its exit code."""
    folder = shards_folder(config.shards)
    try:
        index = read_index(folder)
    except FeatureError as error:
        print(f"shards check: {error}", file=sys.stderr, flush=True)
        return ExitCode.USAGE
    found, statistics = check(folder, index, decode=config.decode)
    print(report(folder, index, found, statistics), flush=True)
    return ExitCode.FAILED if found.num_problems else ExitCode.COMPLETE


def check(folder: str, index: ShardIndex, *, decode: int) -> tuple[Findings, list[Statistic]]:
    """Go through all shards, one in memory at a time."""
    every = max(1, index.num_rows // decode) if decode else 1
    checker = ShardChecker(folder, index, sample_every=every)
    for number, shard in enumerate(index.shards, start=1):
        checker.check(shard)
        if number % _SAY_EVERY == 0:
            to_stderr(f"shards check: {number:,} of {len(index.shards):,} shards")
    _check_strays(folder, index, checker.found)
    return checker.found, checker.finish()


def report(folder: str, index: ShardIndex, found: Findings, statistics: Sequence[Statistic]) -> str:
    """What was found, on one screen."""
    lines = [
        f"shards check: {'sound' if not found.num_problems else 'NOT SOUND'}",
        f"  rows      {found.rows:,} of {len(found.slides):,} slides in {len(index.shards):,} "
        f"shards; {found.decoded:,} images decoded",
        *(
            f"  shuffle   {one.name}: {one.found:,.0f}, by chance {one.expected:,.1f} "
            f"({one.deviations:+.1f} standard deviations)"
            for one in statistics
        ),
        f"  targets   {index.target_dim} values, deviation {min(index.target_std):.3g} to "
        f"{max(index.target_std):.3g} over all rows",
        f"  features  {_cosine_text(index)}",
        f"  folder    {folder}",
    ]
    lines += [f"  WRONG     {one.where}: {one.what}" for one in found.problems[:_SHOWN]]
    if found.num_problems > _SHOWN:
        lines.append(f"            and {found.num_problems - _SHOWN:,} more")
    return "\n".join(lines)


def _cosine_text(index: ShardIndex) -> str:
    if index.cosine is None:
        return "NOT compared when the shards were written: no weights were given"
    return (
        f"cosine of stored to original pixels {index.cosine.mean:.4f} on average "
        f"({index.cosine.num_rows:,} patches)"
    )


def _check_strays(folder: str, index: ShardIndex, found: Findings) -> None:
    """Shards that the index does not name would be read by nobody."""
    known = {shard.name for shard in index.shards}
    for info in objects.list_files(folder, suffix=".parquet"):
        if info.rel not in known and "/" not in info.rel:
            found.add(info.rel, "is not in index.json")
