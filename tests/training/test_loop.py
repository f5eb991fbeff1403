"""When the loop validates, saves and stops, also across stops and restarts at any step."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.errors import InterruptedRunError, TrainingError
from mstar.training.loop import Loop, LoopConfig
from mstar.training.sessions import LocalSession, Session, TrainState
from support.memory_tracker import MemoryTracker

START = TrainState(step=0, world_size=1, fingerprint="f")


@dataclass
class FakeSession:
    """Keeps the states saved; announces that the node goes after a given step."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    saved: list[TrainState] = field(default_factory=list)
    waited: list[bool] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    goes_after: int | None = None
    asked: int = 0

    @contextlib.contextmanager
    def latest(self) -> Iterator[Path | None]:
        yield None

    def save(
        self,
        write: Callable[[Path], None],
        state: TrainState,
        metrics: Mapping[str, float],
        *,
        wait: bool = True,
    ) -> None:
        write(Path("folder"))
        self.saved.append(state)
        self.waited.append(wait)
        self.metrics.append(dict(metrics))

    def preempted(self) -> bool:
        self.asked += 1
        return self.goes_after is not None and self.asked >= self.goes_after


@dataclass
class Run:
    """A loop with everything that it did, in order."""

    config: LoopConfig
    scores: Mapping[int, float | None] = field(default_factory=dict)
    losses: Mapping[int, float] = field(default_factory=dict)
    session: FakeSession = field(default_factory=FakeSession)
    did: list[tuple[str, int]] = field(default_factory=list)
    tracker: MemoryTracker = field(default_factory=MemoryTracker)
    stop_at: int | None = None

    def go(self, state: TrainState = START) -> TrainState:
        return Loop(
            config=self.config,
            session=self.session,
            state=state,
            step=self._step,
            validate=self._validate,
            write=lambda folder: None,
            on_best=lambda step, metrics: self.did.append(("best", step)),
            tracker=self.tracker,
            on_log=lambda step, metrics: self.did.append(("log", step)),
        ).run()

    def _step(self, step: int) -> Mapping[str, float]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.did.append(("step", step))
        return {"loss": self.losses.get(step, 1.0), "norm": math.inf if step == 1 else 1.0}

    def _validate(self, step: int) -> tuple[Mapping[str, float], float | None]:
        self.did.append(("validate", step))
        score = self.scores.get(step, 0.0)
        return {} if score is None else {"val.score": score}, score


def config(**fields: int) -> LoopConfig:
    return LoopConfig(
        **{"num_steps": 10, "validate_every": 3, "checkpoint_every": 4} | fields  # type: ignore[arg-type]
    )


def test_what_happens_when() -> None:
    run = Run(config(log_every=5), scores={3: 0.1, 6: 0.3, 9: 0.2, 10: 0.4})
    ended = run.go()
    assert [step for what, step in run.did if what == "step"] == list(range(10))
    assert [step for what, step in run.did if what == "validate"] == [3, 6, 9, 10]
    assert [step for what, step in run.did if what == "best"] == [3, 6, 10]
    assert [step for what, step in run.did if what == "log"] == [3, 5, 6, 9, 10, 10]
    assert [state.step for state in run.session.saved] == [4, 8, 10]
    assert (ended.step, ended.best) == (10, 0.4)
    assert ended == run.session.saved[-1]
    assert all(math.isfinite(v) for metrics in run.session.metrics for v in metrics.values())
    assert [step for step, _ in run.tracker.metrics] == [3, 5, 6, 9, 10, 10]


@settings(max_examples=60, deadline=None)
@given(
    num_steps=st.integers(1, 12),
    every=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)),
    stops=st.lists(st.integers(0, 12), max_size=3),
    scores=st.lists(st.sampled_from([0.0, 0.1, 0.2]), min_size=13, max_size=13),
)
def test_a_run_that_is_stopped_and_resumed_does_what_an_undisturbed_one_does(
    num_steps: int, every: tuple[int, int, int], stops: list[int], scores: list[float]
) -> None:
    """Steps after the last checkpoint are done again, in the same way; nothing else differs."""
    validate_every, checkpoint_every, patience = every
    plan = config(
        num_steps=num_steps,
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
        patience=patience,
    )
    chosen = dict(enumerate(scores))
    whole = Run(plan, scores=chosen)
    ended = whole.go()
    state, did = START, []
    for stop in [*sorted(stops), None]:
        part = Run(plan, scores=chosen, stop_at=stop)
        with contextlib.suppress(KeyboardInterrupt):
            assert part.go(state) == ended
        state = part.session.saved[-1] if part.session.saved else state
        did += part.did
    assert state == ended
    assert set(did) == set(whole.did)
    last = [state.step for state in whole.session.saved]
    assert last.count(ended.step) == 1  # a checkpoint at the end, exactly once
    assert last == sorted(set(last))


def test_patience_survives_a_resume() -> None:
    plan = config(num_steps=100, validate_every=2, checkpoint_every=3, patience=3)
    scores = {2: 0.5} | dict.fromkeys(range(4, 101, 2), 0.4)
    run = Run(plan, scores=scores)
    assert run.go().step == 8
    resumed = Run(plan, scores=scores)
    assert resumed.go(run.session.saved[0]).step == 8  # from step 3: one validation had a best
    assert [step for what, step in resumed.did if what == "validate"] == [4, 6, 8]
    again = Run(plan, scores=scores)
    assert again.go(run.session.saved[-1]).step == 8  # it is over, and stays so
    assert (again.did, again.session.saved) == ([], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(bad: float) -> None:
    run = Run(config(checkpoint_every=1), losses={5: bad})
    with pytest.raises(TrainingError, match="step 5: expected a finite loss"):
        run.go()
    assert [state.step for state in run.session.saved] == [1, 2, 3, 4, 5]  # before it: step 0 to 4


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_saved() -> None:
    """The loss is of before the update: the parameters are lost already."""
    run = Run(config(checkpoint_every=1))
    run._step = lambda step: {"loss": 1.0, "grad_norm": math.nan if step == 2 else 1.0}  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="step 2: expected a finite grad_norm"):
        run.go()
    assert [state.step for state in run.session.saved] == [1, 2]


def test_a_score_that_is_not_finite_is_no_best() -> None:
    run = Run(config(), scores={3: math.nan, 6: 0.1, 9: math.inf, 10: 0.2})
    assert run.go().best == 0.2
    assert [step for what, step in run.did if what == "best"] == [6, 10]


def test_without_a_score_nothing_is_selected_and_nothing_waited_for() -> None:
    run = Run(config(patience=1), scores=dict.fromkeys(range(11)))
    assert run.go() == replace(run.session.saved[-1], step=10, best=None)


def test_a_node_that_goes_gets_a_checkpoint_first() -> None:
    run = Run(config(checkpoint_every=4), session=FakeSession(goes_after=4))
    with pytest.raises(InterruptedRunError, match="after step 4"):
        run.go()
    assert [state.step for state in run.session.saved] == [4]  # once, though it was due as well
    assert run.session.waited == [True]  # the node may be gone before a copy beside training ends
    resumed = Run(config(checkpoint_every=4))
    assert resumed.go(run.session.saved[-1]).step == 10
    assert resumed.did[0] == ("step", 4)


def test_other_ranks_do_not_log() -> None:
    run = Run(config(log_every=1), session=FakeSession(rank=1))
    run.go()
    assert not [what for what, _ in run.did if what == "log"]
    assert run.tracker.metrics == []
    assert [state.step for state in run.session.saved] == [4, 8, 10]  # saving is collective
    assert run.session.waited == [False, False, True]


def test_a_real_session_goes_on_from_what_the_loop_wrote(tmp_path: Path) -> None:
    from mstar.training.sessions import read_state

    session: Session = LocalSession(str(tmp_path / "c"), device=torch.device("cpu"))
    run = Run(config(), stop_at=6)
    run.session = session  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        run.go()
    with session.latest() as folder:
        assert folder is not None
        state = read_state(folder)
    assert (state.step, state.extra["waited"]) == (4, 0)
