"""What the cells of the table of faults and jobs share: inputs, and what an undisturbed run leaves.

Everything is made when a cell first asks for it, and kept for the session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.chaos_cluster import ChaosCluster
from support.chaos_jobs import JOBS, ChaosJob, Places, Result, Running, results_of

Undisturbed = Callable[[str, int], Result]


@pytest.fixture(autouse=True)
def no_job_outlives_its_test() -> Iterator[None]:
    """A test that fails leaves its job at work."""
    yield
    while Running.started:
        Running.started.pop().kill()


@pytest.fixture(scope="session")
def inputs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with a job's inputs."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(f"{name}-inputs")
            JOBS[name].prepare(made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def undisturbed(
    inputs_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """What a job leaves when nothing befalls it, on so many workers."""
    found: dict[tuple[str, int], Result] = {}

    def run(name: str, workers: int) -> Result:
        if (name, workers) not in found:
            folder = tmp_path_factory.mktemp(f"{name}-undisturbed")
            places = Places(
                inputs=str(inputs_of(name)),
                out=str(folder / "out"),
                notes=folder / "notes",
                workers=workers,
            )
            found[name, workers] = _result(JOBS[name], places)
        return found[name, workers]

    return run


def _result(job: ChaosJob, places: Places) -> Result:
    if places.workers == 0:
        return _ended(job, places, {})
    with ChaosCluster(nodes=places.workers, cpus=2) as cluster:
        return _ended(job, places, {"RAY_ADDRESS": cluster.address})


def _ended(job: ChaosJob, places: Places, env: dict[str, str]) -> Result:
    running = Running(job, places, env=env)
    assert running.end() == 0, running.tail
    return results_of(job, places)


@pytest.fixture
def job(request: pytest.FixtureRequest) -> ChaosJob:
    """The job of a cell."""
    return JOBS[request.param]


@pytest.fixture
def places(job: ChaosJob, inputs_of: Callable[[str], Path], tmp_path: Path) -> Places:
    """Its inputs, and an output of its own, on this machine's disk."""
    return Places(
        inputs=str(inputs_of(job.name)), out=str(tmp_path / "out"), notes=tmp_path / "notes"
    )
