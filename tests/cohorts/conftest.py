"""What several files of cohort tests look at and none changes: made once for all of them."""

from __future__ import annotations

import pytest

from support.sound_cohort import Made, write_sound_cohort


@pytest.fixture(scope="session")
def sound_cohort(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A cohort without a problem."""
    return write_sound_cohort(tmp_path_factory.mktemp("sound"))
