"""What several files of stage-2 tests look at and none changes: made once for all of them."""

from __future__ import annotations

import pytest

from mstar.pretrain.shards_config import ShardsConfig
from mstar.pretrain.shards_job import write_shards
from mstar.training.exit_codes import ExitCode
from support.shard_inputs import write_shard_inputs
from support.shard_runs import elsewhere, small_work


@pytest.fixture(scope="session")
def shard_inputs(tmp_path_factory: pytest.TempPathFactory) -> ShardsConfig:
    """A shard job: its slides, features and targets."""
    return write_shard_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def finished_shards(
    shard_inputs: ShardsConfig, tmp_path_factory: pytest.TempPathFactory
) -> ShardsConfig:
    """One undisturbed run of it."""
    config = elsewhere(shard_inputs, tmp_path_factory.mktemp("finished"))
    with small_work():
        assert write_shards(config) == ExitCode.COMPLETE
    return config
