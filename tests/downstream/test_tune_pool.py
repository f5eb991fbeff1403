"""What the pool does when the driver's own work between two trials fails."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.search import Searcher

from mstar.downstream import tune_pool
from mstar.downstream.pieces import Answer
from mstar.downstream.tune_stop import SignalStop
from mstar.errors import StorageError


class FullJournal:
    """A schedule with work to do, whose journal cannot be written."""

    finished = False

    def next(self) -> Any:
        return object()

    def take(self, piece: object, answer: Answer) -> None:
        raise StorageError("s3://x/journal: ExpiredToken")

    def lose(self, piece: object, reason: str) -> None:
        raise AssertionError("the worker has answered")


@pytest.mark.parametrize("answer", [Answer(), None])
def test_an_error_of_the_driver_ends_the_sweep_and_is_kept(answer: Answer | None) -> None:
    """Tune takes what a searcher raises for the trial's end, and the piece would never be done."""
    stop = SignalStop()
    schedule: Any = FullJournal()
    pieces = tune_pool._Pieces(schedule, lambda: None, stop)
    pieces.suggest("t1")
    assert not stop.stop_all()
    result = None if answer is None else {"answer": tune_pool._packed(answer)}
    pieces.on_trial_complete("t1", result, error=answer is None)
    assert stop.stop_all()
    assert isinstance(stop.error, StorageError if answer else AssertionError)
    assert pieces.suggest("t2") == Searcher.FINISHED
