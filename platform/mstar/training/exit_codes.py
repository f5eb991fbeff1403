"""How a job ends: exit codes, and the failures a caller allows.

      0  COMPLETE     done; nothing failed beyond --max-failures (the summary names exclusions)
      1  FAILED       the job could not do its work: storage, weights, cluster, a bug
      2  USAGE        the command line, a recipe or a manifest is wrong; nothing was started
      3  EXCLUSIONS   all that can be done is done, but more failed than --max-failures allows
    130  INTERRUPTED  told to stop (Ctrl-C, SIGTERM); what is written is valid, a rerun goes on

Within the allowance the code is 0, because schedulers (`ray job`, Slurm, make) take every other
code for a failed job. Failures of earlier runs which this run skipped count as well: they are as
absent from the output as new ones.
"""

import re
from enum import IntEnum

from mstar.errors import ConfigError

MAX_FAILURES = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<percent>%?)")


class ExitCode(IntEnum):
    """Exit codes of every job."""

    COMPLETE = 0
    FAILED = 1
    USAGE = 2
    EXCLUSIONS = 3
    INTERRUPTED = 130


def check_max_failures(spec: str) -> None:
    """Raises ConfigError unless `spec` is a whole number or a percentage, as `0`, `5`, `1%`."""
    match = MAX_FAILURES.fullmatch(spec)
    if match is None or (not match["percent"] and "." in match["number"]):
        raise ConfigError(
            f"--max-failures {spec!r}: expected a number of slides (5) or a share of them (1%)"
        )
    if match["percent"] and float(match["number"]) > 100:
        raise ConfigError(f"--max-failures {spec!r}: expected at most 100%")


def allowed_failures(spec: str, num_total: int) -> int:
    """How many of `num_total` slides may fail; a percentage is rounded down."""
    check_max_failures(spec)
    if spec.endswith("%"):
        return int(num_total * float(spec[:-1]) / 100 + 1e-9)
    return int(spec)


def exit_code(num_failed: int, num_total: int, max_failures: str) -> ExitCode:
    """The code of a job that went through all its slides.

    num_failed: slides absent from the output, those that earlier runs gave up on included.
    """
    if num_failed <= allowed_failures(max_failures, num_total):
        return ExitCode.COMPLETE
    return ExitCode.EXCLUSIONS
