"""`mstar JOB [RECIPE] --flag value …`: how a job is run, and how it ends.

`mstar --help` reads only the table of jobs (`job_table.py`); a job's config loads when it is named,
Ray and torch when it runs. `jobs/X.py` are this program with the job's name filled in. Exit codes:
`mstar.training.exit_codes`.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import mstar
from mstar.cli.job_table import JOBS, named, parts_of, take_job
from mstar.cli.resolve import resolve
from mstar.errors import ConfigError, InterruptedRunError, MstarError, WorkerError
from mstar.training.code_version import check_submitted_code
from mstar.training.credentials import missing_credentials, refuse_secrets
from mstar.training.exit_codes import ExitCode
from mstar.training.interrupts import stop_on_sigterm
from mstar.training.log_lines import LOG_FORMAT, log_format, structured_output

USAGE = """\
usage: mstar JOB [RECIPE] [--flag value …]

jobs:
{jobs}

mstar JOB --help explains a job's flags and recipes; mstar --version prints the version.
--log-format json (or MSTAR_LOG_FORMAT=json): every line that a job prints is one JSON object.
exit codes: 0 complete (failures within --max-failures), 1 failed, 2 wrong call,
            3 complete but for more failures than allowed, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one job and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return ExitCode.COMPLETE if arguments else ExitCode.USAGE
    if arguments[0] == "--version":
        print(mstar.__version__)
        return ExitCode.COMPLETE
    try:
        take_log_format(arguments)
        with structured_output(arguments[0]) if arguments[0] != "submit" else nullcontext():
            return ended(arguments)
    except ConfigError as error:  # of the log format: nothing could be said in it yet
        print(f"mstar: {error}", file=sys.stderr)
        return ExitCode.USAGE


def ended(arguments: Sequence[str]) -> int:
    """Runs a job to its end, whatever that is, and says why it stopped."""
    try:
        return run_job(arguments)
    except (InterruptedRunError, KeyboardInterrupt) as error:
        print(f"mstar: interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # `mstar … | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except MstarError as error:
        print(f"mstar: {error}", file=sys.stderr)
        return ExitCode.USAGE if isinstance(error, ConfigError) else ExitCode.FAILED


def run_job(arguments: Sequence[str]) -> int:
    """Resolves a job's config and runs it; the job is the first word, or the first two."""
    name, rest = take_job(arguments)
    stop_on_sigterm()
    job = JOBS[name]
    refuse_secrets(arguments)
    if job.words:
        return int(named(job.run)(rest))
    check_place()
    config = resolve(name, rest, parts_of(job), summary=job.summary)
    return int(named(job.run)(config))


def check_place() -> None:
    """In a job that `mstar submit` sent: says the driver's code, and that credentials are there.

    Raises:
        WorkerError: the cluster runs other code, or lacks what it was said to have.
    """
    code = check_submitted_code()
    if code is not None:
        print(f"driver: {code}", file=sys.stderr, flush=True)
    if missing := missing_credentials(os.environ):
        raise WorkerError(
            f"the driver's node has no {', '.join(missing)} in its environment; the cluster gives "
            "credentials to its nodes, a job brings only their names"
        )


def take_log_format(arguments: list[str]) -> None:
    """Moves `--log-format X`, a flag of every job, from the arguments to the environment."""
    for at, argument in enumerate(arguments):
        flag, equals, value = argument.replace("_", "-", 2).partition("=")
        if flag == "--log-format":
            last = at + (1 if equals else 2)
            os.environ[LOG_FORMAT] = value if equals else "".join(arguments[at + 1 : last])
            del arguments[at:last]
            break
    log_format()


def usage() -> str:
    """The text of `mstar --help`."""
    return USAGE.format(jobs="\n".join(f"  {name:<17}{job.summary}" for name, job in JOBS.items()))


if __name__ == "__main__":
    sys.exit(main())
