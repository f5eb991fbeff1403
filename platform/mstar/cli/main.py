"""`mstar JOB [RECIPE] --flag value …`: the table of jobs, and how a job ends.

`mstar --help` reads only this table; a job's config loads when it is named, Ray and torch when it
runs. `jobs/X.py` are this program with the job's name filled in. Exit codes:
`mstar.training.exit_codes`.
"""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mstar
from mstar.cli.resolve import JobParts, resolve
from mstar.errors import ConfigError, InterruptedRunError, MstarError
from mstar.training.exit_codes import ExitCode
from mstar.training.interrupts import stop_on_sigterm


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the job table.

    summary: one line for `mstar --help`.
    load: imports what the job needs and returns its parts.
    """

    summary: str
    load: Callable[[], JobParts]


def load_grid() -> JobParts:
    """Parts of `mstar grid`."""
    from mstar.recipes.grid import DEFAULT, RECIPES

    def run(config: Any) -> int:
        from mstar.embed import grid_job

        return grid_job.run(config)

    return JobParts(run=run, recipes=RECIPES, default=DEFAULT)


def load_embed() -> JobParts:
    """Parts of `mstar embed`."""
    from mstar.recipes.embed import DEFAULT, RECIPES

    def run(config: Any) -> int:
        from mstar.embed import job

        return job.run(config)

    return JobParts(run=run, recipes=RECIPES, default=DEFAULT)


def load_export() -> JobParts:
    """Parts of `mstar export`."""
    from mstar.cli.exchange import ExportConfig, export_features

    return JobParts(run=export_features, config=ExportConfig)


def load_import() -> JobParts:
    """Parts of `mstar import`."""
    from mstar.cli.exchange import ImportConfig, import_features

    return JobParts(run=import_features, config=ImportConfig)


def load_demo() -> JobParts:
    """Parts of `mstar demo`."""
    from mstar.cli import demo

    return JobParts(run=demo.run, config=demo.DemoConfig)


def load_doctor() -> JobParts:
    """Parts of `mstar doctor`."""
    from mstar.cli import doctor

    return JobParts(run=doctor.run, config=doctor.DoctorConfig)


JOBS = {
    "grid": Job("slides → the grid of patches on tissue, thumbnail, GeoJSON", load_grid),
    "embed": Job("slides → patch features, one HDF5 per slide", load_embed),
    "export": Job("features → the layout of CLAM, mSTAR, TRIDENT or STAMP", load_export),
    "import": Job("features of CLAM, mSTAR, TRIDENT or STAMP → ours", load_import),
    "demo": Job("the whole pipeline on a small cohort, on this machine", load_demo),
    "doctor": Job("checks this machine, and previews slides with --slides", load_doctor),
}

USAGE = """\
usage: mstar JOB [RECIPE] [--flag value …]

jobs:
{jobs}

mstar JOB --help explains a job's flags and recipes; mstar --version prints the version.
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
        return run_job(arguments[0], arguments[1:])
    except (InterruptedRunError, KeyboardInterrupt) as error:
        print(f"mstar: interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # `mstar … | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except MstarError as error:
        print(f"mstar: {error}", file=sys.stderr)
        return ExitCode.USAGE if isinstance(error, ConfigError) else ExitCode.FAILED


def run_job(name: str, arguments: Sequence[str]) -> int:
    """Resolves a job's config and runs it."""
    if name not in JOBS:
        raise ConfigError(f"no job {name!r}; {nearest(name, JOBS)}")
    stop_on_sigterm()
    parts = JOBS[name].load()
    config = resolve(name, arguments, parts, summary=JOBS[name].summary)
    return int(parts.run(config))


def nearest(word: str, known: Sequence[str] | dict[str, Job]) -> str:
    """What the user may have meant, and what there is."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}There are: {', '.join(known)}"


def usage() -> str:
    """The text of `mstar --help`."""
    return USAGE.format(jobs="\n".join(f"  {name:<8}{job.summary}" for name, job in JOBS.items()))


if __name__ == "__main__":
    sys.exit(main())
