"""The order of a sweep's work, and what a sweep remembers; a stand-in does the work."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.downstream.journal import Journal
from mstar.downstream.pieces import Answer, FitRecord, Piece, cut_round
from mstar.downstream.schedule import LEAST_PIECE, Schedule
from mstar.downstream.search import FAILED
from mstar.downstream.spaces import Space
from support.piece_driver import FULL, drive, full_lengths, make_plan, winners, work


def test_easy_and_hard_task_get_what_they_get_alone(tmp_path: Path) -> None:
    """A search over all trials at once would stop every trial of the hard task early."""
    plans = [make_plan("easy"), make_plan("hard")]

    def uneven(piece: Piece) -> Answer:
        return work(piece, quality=1.0 if piece.study.task_id == "easy" else 0.01)

    alone = {}
    for plan in plans:
        with closing(Journal(str(tmp_path / plan.study.task_id))) as journal:
            schedule = Schedule([plan], journal, slots=2)
            drive(schedule, uneven)
            alone |= full_lengths(schedule)
    with closing(Journal(str(tmp_path / "both"))) as journal:
        both = Schedule(plans, journal, slots=2)
        drive(both, uneven)
    assert full_lengths(both) == alone == {"easy": FULL, "hard": FULL}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 100), slots=st.integers(1, 5), stops=st.lists(st.integers(1, 9)))
def test_killed_anywhere_and_gone_on_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, seed: int, slots: int, stops: list[int]
) -> None:
    """Whoever works, in whatever order, however often it is killed."""
    plans = [make_plan(f"t{i}", size=LEAST_PIECE * (i + 1)) for i in range(3)]
    with closing(Journal(str(tmp_path_factory.mktemp("whole")))) as journal:
        whole = Schedule(plans, journal, slots=1)
        drive(whole, slots=1)
    out = str(tmp_path_factory.mktemp("killed"))
    for most in [*stops, None]:
        with closing(Journal(out)) as journal:
            schedule = Schedule(plans, journal, slots=slots)
            drive(schedule, slots=slots, seed=seed, most=most)
    assert schedule.finished
    assert winners(schedule) == winners(whole)


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    """Only what was running when it was killed."""
    plans = [make_plan("a"), make_plan("b")]
    with closing(Journal(str(tmp_path))) as journal:
        first = drive(Schedule(plans, journal, slots=2), most=5)
    with closing(Journal(str(tmp_path))) as journal:
        again = drive(Schedule(plans, journal, slots=2))
    with closing(Journal(str(tmp_path))) as journal:
        schedule = Schedule(plans, journal, slots=2)
        assert schedule.finished
        assert drive(schedule) == []
    fits = [
        key
        for piece in (*first, *again)
        if piece.work == "fit"
        for keys in piece.keys
        for key in keys
    ]
    assert len(fits) == 2 * 4 * sum(size for size, _ in schedule_sizes())
    assert len(set(fits)) == len(fits)


def schedule_sizes() -> list[tuple[int, int]]:
    """(configurations, epochs) of the rounds of SPACE."""
    return [(4, 2), (2, 8), (4, 2), (2, 8), (2, 2), (1, 8)]


def test_the_largest_study_starts_first_and_ends_the_sweep_evenly(tmp_path: Path) -> None:
    """And small ones fill the gaps that its rounds leave."""
    plans = [make_plan(name, size=size) for name, size in (("s", 1e8), ("l", 9e8), ("m", 3e8))]
    with closing(Journal(str(tmp_path))) as journal:
        done = drive(Schedule(plans, journal, slots=1), slots=1)
    order = list(dict.fromkeys(piece.study.task_id for piece in done))
    assert order == ["l", "m", "s"]


def test_one_failing_study_stops_nothing(tmp_path: Path) -> None:
    """It is reported with its reason, and tried again by a rerun."""

    def broken(piece: Piece) -> Answer:
        if piece.study.task_id == "bad":
            return Answer(failed="no such bags", traceback="line 1")
        return work(piece)

    plans = [make_plan("good"), make_plan("bad"), make_plan("fine")]
    told = []
    with closing(Journal(str(tmp_path))) as journal:
        schedule = Schedule(plans, journal, slots=2, on_change=lambda run: told.append(run))
        drive(schedule, broken)
        failed = {s.task_id: run.failed for s, run in schedule.studies.items() if run.failed}
    assert failed == {"bad": "no such bags"}
    assert {"good", "bad", "fine"} == {run.plan.study.task_id for run in told if run.done}
    with closing(Journal(str(tmp_path))) as journal:
        again = Schedule(plans, journal, slots=2)
        assert {piece.study.task_id for piece in drive(again)} == {"bad"}
        assert not any(run.failed for run in again.studies.values())


def test_a_worker_that_dies_is_tried_once_more(tmp_path: Path) -> None:
    """Then its study fails, and nothing else."""
    with closing(Journal(str(tmp_path))) as journal:
        schedule = Schedule([make_plan("a"), make_plan("b")], journal, slots=1)
        attempts = 0
        while not schedule.finished:
            piece = schedule.next()
            assert piece is not None
            if piece.study.task_id == "a":
                attempts += 1
                schedule.lose(piece, "it died")
            else:
                schedule.take(piece, work(piece))
    assert attempts == 2
    assert schedule.studies[make_plan("a").study].failed == "it died; tried 2 times"
    assert schedule.studies[make_plan("b").study].concluded is not None


def test_transient_trouble_is_tried_again(tmp_path: Path) -> None:
    """As a network that comes back."""
    seen: Counter[str] = Counter()

    def flaky(piece: Piece) -> Answer:
        seen[piece.name] += 1
        if piece.attempt == 0:
            return Answer(failed="timeout", transient=True)
        return work(piece)

    with closing(Journal(str(tmp_path))) as journal:
        schedule = Schedule([make_plan("a")], journal, slots=1)
        drive(schedule, flaky, slots=1)
    assert not schedule.studies[make_plan("a").study].failed
    assert min(seen.values()) >= 2


def test_a_configuration_that_fails_does_not_win(tmp_path: Path) -> None:
    """Nor does it stop the others; one that diverged is remembered, an error is tried again."""

    def one_fails(piece: Piece) -> Answer:
        answer = work(piece)
        fits = [
            FitRecord(key=f.key, trial=0, fold=f.fold, seed=f.seed, score=None, failed="inf")
            if f.trial == 0
            else f
            for f in answer.fits
        ]
        return Answer(fits=tuple(fits), concluded=answer.concluded)

    with closing(Journal(str(tmp_path))) as journal:
        schedule = Schedule([make_plan("a")], journal, slots=1)
        drive(schedule, one_fails)
    run = schedule.studies[make_plan("a").study]
    assert run.search.ended[0].score == FAILED
    assert not run.search.ended[0].full
    assert run.search.best is not None
    assert run.search.best.trial != 0
    assert (run.num_failed_trials, run.raised) == (1, False)


def test_all_failing_is_a_failed_study(tmp_path: Path) -> None:
    """With the first reason."""

    def fails(piece: Piece) -> Answer:
        fits = [
            FitRecord(key=f.key, trial=f.trial, fold=f.fold, seed=f.seed, score=None, failed="inf")
            for f in work(piece).fits
        ]
        return Answer(fits=tuple(fits))

    with closing(Journal(str(tmp_path))) as journal:
        schedule = Schedule([make_plan("a")], journal, slots=1)
        drive(schedule, fails)
    failed = schedule.studies[make_plan("a").study].failed
    assert failed == "every configuration failed: inf"


def test_a_concluded_study_is_not_opened_with_another_space(tmp_path: Path) -> None:
    """Its test part was scored once already."""
    with closing(Journal(str(tmp_path))) as journal:
        drive(Schedule([make_plan("a")], journal, slots=1))
    with closing(Journal(str(tmp_path))) as journal:
        other = Schedule([make_plan("a", samples=3)], journal, slots=1)
        assert other.finished
    assert "Choose another --out" in other.studies[make_plan("a").study].failed


def test_external_tasks_wait_for_the_study_whose_models_they_take(tmp_path: Path) -> None:
    """And fail with it."""
    inner = make_plan("inner")
    outer = make_plan("outer", models_of=inner.study, size=1e12)
    with closing(Journal(str(tmp_path / "a"))) as journal:
        done = drive(Schedule([outer, inner], journal, slots=2))
    assert (done[-1].work, done[-1].study.task_id) == ("external", "outer")
    with closing(Journal(str(tmp_path / "b"))) as journal:
        schedule = Schedule([outer, inner], journal, slots=2)
        drive(schedule, lambda piece: Answer(failed="no"))
    assert schedule.studies[outer.study].failed == "inner/e/abmil failed, whose models it needs"


def test_one_configuration_is_trained_and_concluded_in_one_piece(tmp_path: Path) -> None:
    """The paper's: a study is one Tune trial, unless it is worth cutting."""
    plan = make_plan("a", space=Space(), budgets=(30,), size=10.0)
    with closing(Journal(str(tmp_path))) as journal:
        piece = Schedule([plan], journal, slots=2).next()
    assert piece is not None
    assert (piece.work, piece.conclude, len(piece.runs)) == ("fit", True, 4)


@settings(max_examples=50)
@given(
    configs=st.integers(1, 9),
    runs=st.integers(1, 8),
    target=st.floats(0.1, 100.0),
    gaps=st.sets(st.integers(0, 71)),
)
def test_pieces_cover_a_round_once(configs: int, runs: int, target: float, gaps: set[int]) -> None:
    """Every missing fit is in one piece, populations stay whole while a run of them fits."""
    pairs = [(at, (run, 1)) for at in range(configs) for run in range(runs)]
    missing = [pair for number, pair in enumerate(pairs) if number not in gaps]
    pieces = cut_round(missing, [1.0] * configs, target)
    covered = Counter((at, run) for group, part in pieces for at in group for run in part)
    assert covered == Counter(missing)
    if not gaps and target >= configs:
        assert all(len(group) == configs for group, _ in pieces)
        assert max(len(group) * len(part) for group, part in pieces) < target + configs


def test_many_trials_cost_the_driver_little(tmp_path: Path) -> None:
    """Thirty studies of ten trials, four fits each: the bookkeeping is no bottleneck."""
    plans = [make_plan(f"t{i:03d}", size=1e6 * (i + 1)) for i in range(30)]
    with closing(Journal(str(tmp_path))) as journal:
        schedule = Schedule(plans, journal, slots=16)
        drive(schedule, slots=16)
    assert sum(len(run.search.ended) for run in schedule.studies.values()) == 300
    assert set(full_lengths(schedule).values()) == {FULL}
