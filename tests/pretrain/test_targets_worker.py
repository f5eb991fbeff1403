"""A worker: every patch its own target exactly once, and one case's trouble stays its own.

The teacher here hands features back as targets, so that a target in the wrong row shows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.bags import BagConfig, BagReader
from mstar.data.target_files import TargetProvenance
from mstar.data.targets import TargetStore
from mstar.errors import WorkerError
from mstar.features.store import FeatureStore
from mstar.pretrain.targets_cases import TargetCase
from mstar.pretrain.targets_worker import TargetsWorker, Tokens
from mstar.storage.cache import SlideCache
from mstar.storage.ledger import Attempts, FailureLedger
from support.feature_files import CONFIG, toy_grid, toy_provenance
from support.target_inputs import DIM, WINDOW, features_of, write_features

Slides = Mapping[str, Mapping[str, int]]


class Echo:
    """Hands a window's features back as its tokens, and remembers the sizes of windows."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, features: np.ndarray) -> np.ndarray:
        self.sizes.append(len(features))
        return features.astype(np.float16)


class Work:
    """A feature store, a target store and the workers on them."""

    def __init__(self, folder: Path, slides: Slides, *, coverage: Literal["all", "paper"]) -> None:
        self.folder, self.coverage = folder, coverage
        self.features = FeatureStore.open_or_create(str(folder / "f"), CONFIG)
        for of_case in slides.values():
            for slide_id, num in of_case.items():
                write_features(self.features, slide_id, features_of(slide_id, num))
        self.store = TargetStore.open_or_create(str(folder / "t"), {"target_dim": DIM})
        self.ledger = FailureLedger(f"{self.store.root}/failures")
        self.cases = [
            TargetCase(case_id=k, slides=tuple(v), num_patches=sum(v.values()), inputs="f#1")
            for k, v in slides.items()
        ]

    def worker(
        self, teacher: Tokens, *, window: int = WINDOW, run_id: str = "run"
    ) -> TargetsWorker:
        bags = BagConfig(size=window, fill="masked", seed=0)
        return TargetsWorker(
            teacher=teacher,
            reader=BagReader(str(self.folder / "f"), bags),
            cache=SlideCache(self.folder / "cache", max_bytes=10**9),
            store=self.store,
            provenance=TargetProvenance(
                fingerprint=self.store.fingerprint,
                aggregator_sha256="ab" * 32,
                mode="public",
                attention="nystrom",
                precision="float32",
                features_fingerprint=self.features.fingerprint,
                encoder="vit_tiny",
                weights_sha256="cd" * 32,
                coverage=self.coverage,
                window=window,
                seed=0,
            ),
            run_id=run_id,
            lease_s=60.0,
        )

    def leftovers(self) -> list[str]:
        root = Path(self.store.root) / "_state"
        return [path.name for path in root.rglob("*") if path.is_file()]


def case_sizes() -> st.SearchStrategy[list[list[int]]]:
    """Patches of each slide of each case; a case has one patch at least."""
    one = st.lists(st.integers(0, 45), min_size=1, max_size=3).filter(sum)
    return st.lists(one, min_size=1, max_size=3)


def named(sizes: list[list[int]]) -> dict[str, dict[str, int]]:
    return {
        f"c{i}": {f"c{i}-s{k}": num for k, num in enumerate(of_case)}
        for i, of_case in enumerate(sizes)
    }


@settings(max_examples=8, deadline=None)
@given(sizes=case_sizes(), window=st.integers(1, 20))
def test_every_patch_gets_its_own_target_exactly_once(
    sizes: list[list[int]], window: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From files to files, whatever the slides' sizes and the window; no remainder window."""
    slides = named(sizes)
    work, echo = Work(tmp_path_factory.mktemp("w"), slides, coverage="all"), Echo()
    worker = work.worker(echo, window=window)
    tally = worker.run(work.cases)
    worker.close()
    assert tally.failed == 0
    assert tally.done == len(slides)
    assert tally.patches == sum(map(sum, sizes))
    for case_id, of_case in slides.items():
        for slide_id, num in of_case.items():
            found = work.store.read(slide_id, check="full")
            np.testing.assert_array_equal(found.rows, np.arange(num))
            np.testing.assert_array_equal(found.targets, features_of(slide_id, num))
            np.testing.assert_array_equal(found.coords, toy_grid(slide_id, num=num).coords)
            assert (found.case_id, found.num_patches) == (case_id, num)
    seen = iter(echo.sizes)
    for of_case in sizes:  # cases in order, as few windows as possible, of near-equal sizes
        ours = [next(seen) for _ in range(-(-sum(of_case) // window))]
        assert sum(ours) == sum(of_case)
        assert max(ours) - min(ours) <= 1
    assert next(seen, None) is None


def test_paper_coverage_is_one_sample_of_the_window_s_size(tmp_path: Path) -> None:
    """The rows of stage 1's own draw, each with its own target; others and padding have none."""
    slides = {"big": {"b1": 40, "b2": 1, "b3": 60}, "small": {"s1": 5, "s2": 0}}
    work, echo = Work(tmp_path, slides, coverage="paper"), Echo()
    worker = work.worker(echo)
    tally = worker.run(work.cases)
    worker.close()
    assert echo.sizes == [WINDOW, 5]
    assert tally.patches == WINDOW + 5
    bag = BagReader(str(tmp_path / "f"), BagConfig(size=WINDOW)).read("big", ("b1", "b2", "b3"))
    for index, (slide_id, num) in enumerate(slides["big"].items()):
        found = work.store.read(slide_id)
        np.testing.assert_array_equal(found.rows, bag.row_index[bag.slide_index == index])
        np.testing.assert_array_equal(found.targets, features_of(slide_id, num)[found.rows])
    assert [len(work.store.read(slide)) for slide in ("s1", "s2")] == [5, 0]


def test_a_bad_case_never_stops_the_rest(tmp_path: Path) -> None:
    """NaN, missing features, no patch at all, features of another configuration, other dims."""
    slides = {
        "good 1": {"g1": 20},
        "nan": {"n1": 20, "n2": 0},
        "missing": {"m1": 4},
        "empty": {"e1": 0},
        "foreign": {"x1": 4},
        "good 2": {"g2": 3},
    }
    work = Work(tmp_path, slides, coverage="all")
    root = tmp_path / "f"
    (root / "m1.h5").unlink()
    values = features_of("n1", 20)
    values[17, 3] = np.nan
    (root / "n1.h5").unlink()
    # the writer refuses NaN, so it is put in behind its back
    write_features(work.features, "n1", features_of("n1", 20))
    data = (root / "n1.h5").read_bytes()
    good, bad = features_of("n1", 20).tobytes(), values.tobytes()
    assert data.count(good) == 1
    (root / "n1.h5").write_bytes(data.replace(good, bad))
    (root / "x1.h5").unlink()
    other = FeatureStore.open_or_create(str(tmp_path / "other"), {**CONFIG, "dim": 1})
    grid, made_by = toy_grid("x1", num=4), toy_provenance(fingerprint=other.fingerprint)
    other.write("x1", grid, features_of("x1", 4), made_by)
    (root / "x1.h5").write_bytes((tmp_path / "other" / "x1.h5").read_bytes())
    worker = work.worker(Echo(), window=6)
    tally = worker.run(work.cases)
    worker.close()
    assert (tally.done, tally.failed) == (2, 4)
    assert sorted(work.store.slide_ids()) == ["g1", "g2"]
    failures = {one.slide_id: one for one in work.ledger.all()}
    assert set(failures) == {"nan", "missing", "empty", "foreign"}
    assert "slide n1: features, row 17" in failures["nan"].message
    assert "slide m1: expected features" in failures["missing"].message
    assert "expected patches, got none" in failures["empty"].message
    assert "fingerprint" in failures["foreign"].message
    assert all(one.permanent and one.uri == "f#1" for one in failures.values())
    assert work.leftovers() == []


def test_tokens_that_float16_cannot_hold_fail_their_case(tmp_path: Path) -> None:
    work = Work(tmp_path, {"a": {"a1": 20}, "b": {"b1": 5}}, coverage="all")

    def teacher(features: np.ndarray) -> np.ndarray:
        tokens = features.astype(np.float16)
        tokens[0, 0] = np.inf if len(features) > 5 else 0
        return tokens

    worker = work.worker(teacher)
    tally = worker.run(work.cases)
    worker.close()
    assert (tally.done, tally.failed) == (1, 1)
    (failure,) = work.ledger.all()
    assert failure.slide_id == "a"
    assert "float16" in failure.message
    assert list(work.store.slide_ids()) == ["b1"]


def test_a_teacher_that_fails_ends_the_run_and_blames_no_case(tmp_path: Path) -> None:
    work = Work(tmp_path, {"a": {"a1": 20}, "b": {"b1": 5}}, coverage="all")

    def teacher(features: np.ndarray) -> np.ndarray:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    worker = work.worker(teacher)
    with pytest.raises(WorkerError, match="illegal memory access"):
        worker.run(work.cases)
    worker.close()
    assert list(work.ledger.all()) == []
    assert list(work.store.slide_ids()) == []
    assert work.leftovers() == []  # claims and attempts are given back


def test_a_case_in_other_hands_is_left_to_them(tmp_path: Path) -> None:
    """Two runs on one output: while one has a case, the other does the rest."""
    work = Work(tmp_path, {"a": {"a1": 9}, "b": {"b1": 5}}, coverage="all")
    second = work.worker(Echo(), run_id="second")
    met: list[tuple[int, int]] = []

    class Meeting(Echo):
        def __call__(self, features: np.ndarray) -> np.ndarray:
            if not met:
                tally = second.run(work.cases[:1])
                met.append((tally.elsewhere, tally.done))
            return super().__call__(features)

    first = work.worker(Meeting(), run_id="first")
    tally = first.run(work.cases)
    assert met == [(1, 0)]
    assert tally.done == 2
    assert second.run(work.cases).present == 2
    first.close()
    second.close()


def test_a_case_that_kills_its_worker_is_taken_alone_then_quarantined(tmp_path: Path) -> None:
    """As in the embedding job; the count is what dead processes left behind."""
    work = Work(tmp_path, {"a": {"a1": 9}, "b": {"b1": 5}, "c": {"c1": 5}}, coverage="all")
    attempts = Attempts(f"{work.store.root}/_state/attempts")
    for _ in range(2):
        attempts.begin("a", alone=False)
    attempts.begin("b", alone=True)
    order: list[int] = []

    class Order(Echo):
        def __call__(self, features: np.ndarray) -> np.ndarray:
            order.append(len(features))
            return super().__call__(features)

    worker = work.worker(Order())
    tally = worker.run(work.cases)
    worker.close()
    assert (tally.done, tally.failed) == (2, 1)
    assert order == [5, 9]  # c first; then a, alone
    (failure,) = work.ledger.all()
    assert failure.slide_id == "b"
    assert "case b: the process died" in failure.message


def test_files_of_a_case_written_before_stay_as_they_are(tmp_path: Path) -> None:
    """A case killed between its files is computed again, and only what is missing is written."""
    slides = {"a": {"a1": 20, "a2": 13}}
    work = Work(tmp_path, slides, coverage="all")
    worker = work.worker(Echo())
    worker.run(work.cases)
    root = Path(work.store.root)
    before = {path: path.read_bytes() for path in root.glob("*.h5")}
    (root / "a2.h5").unlink()
    kept = (root / "a1.h5").stat().st_mtime_ns
    assert worker.run(work.cases).done == 1
    worker.close()
    assert (root / "a1.h5").stat().st_mtime_ns == kept
    assert {path: path.read_bytes() for path in root.glob("*.h5")} == before
