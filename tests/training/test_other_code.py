"""A worker of other code than the driver's ends the job with a word; progress between bundles."""

import json
import os
import threading
from unittest.mock import Mock

import pyarrow as pa
import pytest

from mstar.downstream.piece_worker import PieceWorker, WorkerSettings
from mstar.downstream.pieces import Piece
from mstar.embed.live import Board, Teller, board_for
from mstar.embed.pipeline import BundleActor
from mstar.embed.readers import ReaderActor
from mstar.embed.results import Tally
from mstar.errors import WorkerError
from mstar.pretrain.shards_pool import BucketActor, UnitActor
from mstar.pretrain.targets_plan import TargetsActor
from mstar.training.actor_pool import PoolShape, run_pool
from mstar.training.code_version import DRIVER_CODE, check_worker, this_code


@pytest.fixture
def other_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver says that it runs something else."""
    monkeypatch.delenv("MSTAR_CODE_CHECK", raising=False)
    monkeypatch.setenv(DRIVER_CODE, other_code())


def other_code() -> str:
    return json.dumps(json.loads(this_code().to_json()) | {"source": "0" * 12})


@pytest.mark.parametrize("actor", [BundleActor, ReaderActor, TargetsActor, UnitActor, BucketActor])
@pytest.mark.usefixtures("other_driver")
def test_actors_refuse_before_they_are_built(actor: type) -> None:
    make = Mock()
    with pytest.raises(WorkerError, match=r"other code than the driver: expected .* 0{12}"):
        actor(make)
    make.assert_not_called()


@pytest.mark.usefixtures("other_driver")
def test_a_piece_of_a_sweep_is_answered_with_the_reason() -> None:
    worker = PieceWorker(Mock(spec=WorkerSettings, protocol="honest"), Mock())
    answer = worker.work(Mock(spec=Piece))
    assert "other code than the driver" in answer.failed
    assert answer.transient


@pytest.mark.usefixtures("other_driver")
def test_a_worker_says_its_code_and_starts(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray would start a worker that fails here again for ever."""
    check_worker()
    assert f"worker: {this_code()}" in capsys.readouterr().err


class OfOtherCode(BundleActor):
    """As on a node with another wheel."""

    def __init__(self, code: str) -> None:
        os.environ[DRIVER_CODE] = code
        os.environ.pop("MSTAR_CODE_CHECK", None)
        super().__init__(Mock)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_job_ends_with_the_reason() -> None:
    plan, shape = pa.table({"slide": ["a", "b"]}), PoolShape(workers=1, num_cpus=1.0)
    with pytest.raises(WorkerError, match="other code than the driver"):
        list(run_pool(plan, OfOtherCode, (other_code(),), shape))


def test_a_board_adds_up_the_last_word_on_each_bundle() -> None:
    board = Board()
    board.tell("a", Tally(done=1, patches=10).to_row())
    board.tell("b", Tally(done=2, patches=5).to_row())
    board.tell("a", Tally(done=2, patches=30).to_row())  # done again after its worker died
    assert board.total() == Tally(done=4, patches=35).to_row()


def test_a_worker_does_not_tell_at_every_batch() -> None:
    actor = Mock()
    teller = Teller(actor, "a")
    for patches in range(1000):
        teller(Tally(patches=patches))
    assert actor.tell.remote.call_count <= 1
    teller.last(Tally(patches=1000))
    assert actor.tell.remote.call_args.args == ("a", Tally(patches=1000).to_row())


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_progress_comes_between_the_ends_of_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mstar.embed.live.ASK_EVERY_S", 0.1)
    seen: list[Tally] = []
    enough = threading.Event()

    def live(tally: Tally) -> None:
        seen.append(tally)
        if tally.patches == 7:
            enough.set()

    with board_for(live) as board:
        Teller(board, "a").last(Tally(patches=7))
        assert enough.wait(60)
    patches = [tally.patches for tally in seen]
    assert patches == sorted(patches)
