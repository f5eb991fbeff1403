"""A small cohort, and what one undisturbed run of the embedding job leaves of it."""

from pathlib import Path

import pytest

from mstar.embed import job
from mstar.training.exit_codes import ExitCode
from support.cohorts import leftovers, output_digests, quick_embed, write_cohort


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six slides of different sizes, with a space and an umlaut in their names."""
    return write_cohort(tmp_path_factory.mktemp("cohort"), num_slides=6)


@pytest.fixture(scope="session")
def undisturbed(
    slides: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> dict[str, str]:
    """Digests of what one worker leaves when nobody disturbs it."""
    out = tmp_path_factory.mktemp("undisturbed") / "features"
    assert job.run(quick_embed(slides, out)) == ExitCode.COMPLETE
    digests = output_digests(out)
    assert len(digests) == len(list(slides.iterdir()))
    assert leftovers(out) == []
    return digests
