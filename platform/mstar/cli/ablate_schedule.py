"""What of the ablation may run beside what: the units of all seeds, several at once.

A unit is a part of one seed's work that one core does alone. Earlier seeds go first; at the end,
when one seed is left, its teachers and arms share the cores.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context

from mstar.cli.ablate_seed import prepare, score, teach
from mstar.cli.ablate_settings import SeedRun
from mstar.pretrain.ablate_arms import ARMS, teachers_of
from mstar.pretrain.ablate_report import Score

PREPARE, TEACH, SCORE = "prepare", "teach", "score"
UNITS_A_PROCESS = 16  # then a fresh one: what libraries keep does not add up


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A part of one seed's work; needs: units that must be done before, as (what, letter)."""

    run: SeedRun
    what: str
    letter: str = ""
    needs: frozenset[tuple[str, str]] = frozenset()

    def key(self) -> tuple[int, str, str]:
        """Which it is."""
        return self.run.seed, self.what, self.letter

    def is_ready(self, done: set[tuple[int, str, str]]) -> bool:
        """Whether all that it needs is done."""
        return all((self.run.seed, *need) in done for need in self.needs)


def units_of(run: SeedRun) -> list[Unit]:
    """The units of a seed, in an order in which one core could do them."""
    teachers = [letter for letter in teachers_of(run.config.chosen) if letter]
    first = min(teachers, default="")
    prepared = frozenset({(PREPARE, "")})
    units = [Unit(run=run, what=PREPARE)]
    units += [Unit(run=run, what=TEACH, letter=one, needs=prepared) for one in sorted(teachers)]
    for letter in run.config.chosen:
        teacher = ARMS[letter].teacher
        pixels = {(TEACH, first), (TEACH, teacher)} if teacher else set()
        units.append(Unit(run=run, what=SCORE, letter=letter, needs=prepared | pixels))
    return units


def run_units(runs: Sequence[SeedRun], workers: int) -> Iterator[tuple[SeedRun, list[Score]]]:
    """Every seed with its scores, as they come."""
    units = [unit for run in runs for unit in units_of(run)]
    scores: dict[int, list[Score]] = {run.seed: [] for run in runs}
    left = {run.seed: len(units_of(run)) for run in runs}
    for unit, found in _finished(units, workers):
        seed = unit.run.seed
        scores[seed] += found
        left[seed] -= 1
        if not left[seed]:
            yield unit.run, scores[seed]


def _finished(units: list[Unit], workers: int) -> Iterator[tuple[Unit, list[Score]]]:
    if workers == 1:
        yield from ((unit, do(unit)) for unit in units)
        return
    with ExitStack() as stack:
        pool = ProcessPoolExecutor(
            workers, get_context("spawn"), max_tasks_per_child=UNITS_A_PROCESS
        )
        stack.callback(pool.shutdown, cancel_futures=True)
        done: set[tuple[int, str, str]] = set()
        working: dict[Future[list[Score]], Unit] = {}
        while units or working:
            for unit in [u for u in units if u.is_ready(done)][: workers - len(working)]:
                units.remove(unit)
                working[pool.submit(do, unit)] = unit
            for future in wait(working, return_when=FIRST_COMPLETED).done:
                unit = working.pop(future)
                done.add(unit.key())
                yield unit, future.result()


def do(unit: Unit) -> list[Score]:
    """Do a unit, in this process; its scores, where it has some."""
    if unit.what == PREPARE:
        prepare(unit.run)
    elif unit.what == TEACH:
        teach(unit.run, unit.letter)
    else:
        return score(unit.run, unit.letter)
    return []
