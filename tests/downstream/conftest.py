"""What several files of downstream tests look at and none changes: made once for all of them."""

from __future__ import annotations

import pytest

from support.language_world import World, write_world


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A cohort with features and untrained encoders."""
    return write_world(tmp_path_factory.mktemp("world"), cases=12)
