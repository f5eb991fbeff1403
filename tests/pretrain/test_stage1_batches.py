"""A step's inputs: the same whoever reads them and when, and nothing unusable among them."""

import pickle
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mstar.data.bags import BagConfig, BagReader
from mstar.data.cases import read_cases
from mstar.data.report_tokens import ReportTokenizer, case_seed
from mstar.data.reports import read_reports
from mstar.data.rna.binning import BinningConfig, bin_expression
from mstar.data.rna.store import ExpressionStore
from mstar.errors import FeatureError
from mstar.features.store import FeatureStore
from mstar.models.multimodal import MultimodalBatch
from mstar.pretrain.batch_plan import MODALITIES
from mstar.pretrain.cached_step import Chunk
from mstar.pretrain.stage1_batches import Ahead, CaseInputs, chunks_of, spread
from mstar.pretrain.stage1_cases import BadInput, TrainCase
from support.feature_files import CONFIG
from support.stage1_inputs import Stage1Inputs, write_slide_features, write_stage1_inputs

SIZE, TOKENS = 24, 8


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Stage1Inputs:
    return write_stage1_inputs(tmp_path_factory.mktemp("stage1"), cases=14, missing=0.2)


def opened(made: Stage1Inputs, bad: list[BadInput] | None = None) -> CaseInputs:
    tokenizer = ReportTokenizer(made.text, max_tokens=TOKENS)
    reports = read_reports(str(made.cohort / "reports.csv"))
    keys = list(reports)
    ids = tokenizer.token_ids([reports[key].text for key in keys])
    return CaseInputs(
        bags=BagReader(str(made.features), BagConfig(size=SIZE, seed=5)),
        token_ids=dict(zip(keys, ids, strict=True)),
        tokenizer=tokenizer,
        expression=ExpressionStore.open(str(made.cohort / "expression")),
        bins=BinningConfig(),
        seed=5,
        on_bad=[].append if bad is None else bad.append,
    )


@pytest.fixture(scope="module")
def inputs(made: Stage1Inputs) -> CaseInputs:
    return opened(made)


@pytest.fixture(scope="module")
def cases(made: Stage1Inputs) -> list[TrainCase]:
    found = read_cases(str(made.cohort / "cases.csv"))
    types = sorted({case.cancer_type for case in found})
    return [
        TrainCase(
            case=case,
            modalities=frozenset(
                name
                for name, there in zip(
                    MODALITIES, (case.slides, case.report, case.rna), strict=True
                )
                if there
            ),
            cancer=types.index(case.cancer_type),
        )
        for case in found
    ]


def rows_of(chunks: Sequence[Chunk]) -> dict[tuple[str, str], bytes]:
    """(case, modality) → its input, padding of the report left off."""
    found: dict[tuple[str, str], bytes] = {}
    for chunk in chunks:
        batch = chunk.batch
        if batch.bags is not None:
            for place, bag, mask in zip(
                batch.bag_cases.tolist(), batch.bags, batch.bag_mask, strict=True
            ):
                found[chunk.case_ids[place], "wsi"] = bag.numpy().tobytes() + mask.numpy().tobytes()
        if batch.tokens is not None:
            for place, row, mask in zip(
                batch.token_cases.tolist(), batch.tokens, batch.token_mask, strict=True
            ):
                found[chunk.case_ids[place], "text"] = row[mask].numpy().tobytes()
        if batch.expression is not None:
            for place, row in zip(batch.expression_cases.tolist(), batch.expression, strict=True):
                found[chunk.case_ids[place], "gene"] = row.numpy().tobytes()
    return found


def test_a_chunk_holds_what_the_readers_give(inputs: CaseInputs, cases: list[TrainCase]) -> None:
    chunk = inputs.chunk(cases, epoch=2, training=True)
    batch = chunk.batch
    assert chunk.case_ids == tuple(one.case.case_id for one in cases)
    assert chunk.cancer.tolist() == [one.cancer for one in cases]
    assert batch.num_cases == len(cases)
    keys = {"wsi": batch.bag_cases, "text": batch.token_cases, "gene": batch.expression_cases}
    for name, places in keys.items():
        assert places.tolist() == [i for i, one in enumerate(cases) if name in one.modalities]
        assert 0 < len(places) < len(cases)
    for row, place in enumerate(batch.bag_cases.tolist()):
        case = cases[place].case
        bag = inputs.bags.read(case.case_id, case.slides, epoch=2)
        np.testing.assert_array_equal(batch.bags[row].numpy(), bag.features)
        np.testing.assert_array_equal(batch.bag_mask[row].numpy(), bag.mask)
    for row, place in enumerate(batch.token_cases.tolist()):
        key = cases[place].case.report
        seed = case_seed(5, 2, key)
        cut = inputs.tokenizer.cut(inputs.token_ids[key], window="random", seed=seed)
        width = batch.tokens.shape[1]
        np.testing.assert_array_equal(batch.tokens[row].numpy(), cut.input_ids[:width])
        np.testing.assert_array_equal(batch.token_mask[row].numpy(), cut.attention_mask[:width])
    values = inputs.expression.rows([cases[place].case.rna for place in batch.expression_cases])
    np.testing.assert_array_equal(batch.expression.numpy(), bin_expression(values, inputs.bins))


def test_inputs_depend_on_seed_epoch_and_case_alone(
    made: Stage1Inputs, inputs: CaseInputs, cases: list[TrainCase]
) -> None:
    """Not on chunks, ranks, order, threads, or on what was read before."""
    whole = rows_of([inputs.chunk(cases, epoch=3, training=True)])
    for ranks, chunk_cases in ((1, 4), (2, 3), (3, 100)):
        chunks = [
            chunk
            for rank in range(ranks)
            for chunk in chunks_of(
                inputs, cases[rank::ranks], chunk_cases=chunk_cases, num_chunks=5, epoch=3
            )
        ]
        assert rows_of(chunks) == whole
    restarted = opened(made)
    assert rows_of([restarted.chunk(cases[::-1], epoch=3, training=True)]) == whole
    copied = pickle.loads(pickle.dumps(replace(inputs, on_bad=print)))
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda one: copied.chunk([one], epoch=3, training=True), cases))
    assert rows_of(read) == whole
    later = rows_of([inputs.chunk(cases, epoch=4, training=True)])
    changed = {name for (_, name), row in later.items() if row != whole[_, name]}
    assert changed == {"wsi", "text"}, "bags and windows are drawn anew, expression is as it is"
    reseeded = rows_of([replace(inputs, seed=6).chunk(cases, epoch=3, training=True)])
    assert reseeded != whole


def test_validation_sees_the_same_in_every_epoch(
    inputs: CaseInputs, cases: list[TrainCase]
) -> None:
    first = rows_of([inputs.chunk(cases, epoch=0, training=False)])
    assert rows_of([inputs.chunk(cases, epoch=9, training=False)]) == first
    batch = inputs.chunk(cases, epoch=0, training=False).batch
    for row, place in enumerate(batch.token_cases.tolist()):
        ids = inputs.token_ids[cases[place].case.report]
        assert batch.tokens[row, 1 : TOKENS - 1].tolist() == ids[: TOKENS - 2].tolist()


def test_last_chunks_may_be_empty(inputs: CaseInputs, cases: list[TrainCase]) -> None:
    chunks = chunks_of(inputs, cases[:5], chunk_cases=2, num_chunks=4, epoch=0)
    assert [chunk.batch.num_cases for chunk in chunks] == [2, 2, 1, 0]
    empty = chunks[-1]
    assert empty.case_ids == ()
    assert len(empty.cancer) == 0
    assert all(x is None for x in (empty.batch.bags, empty.batch.tokens, empty.batch.expression))


def test_features_stay_as_stored(inputs: CaseInputs, cases: list[TrainCase]) -> None:
    """Half of float32's memory while a step waits; tensors share numpy's memory."""
    batch = inputs.chunk(cases, epoch=0, training=True).batch
    assert batch.bags.dtype == torch.float16
    assert batch.bags.nbytes == len(batch.bag_cases) * SIZE * 32 * 2


BAD = {
    "nan": "row 17",
    "infinity": "row 2",
    "dimensions": "expected 32 dims",
    "missing": "expected features",
}


@pytest.fixture
def spoilt(
    made: Stage1Inputs, cases: list[TrainCase], tmp_path: Path
) -> tuple[Stage1Inputs, dict[str, TrainCase]]:
    """A copy of the store with bad slides in it, and the cases they belong to."""
    copied = replace(made, features=tmp_path / "f")
    shutil.copytree(made.features, copied.features)
    # the first case read sets the dimensions that are expected of the others
    with_slides = [one for one in cases if "wsi" in one.modalities][1:]
    bad = dict(zip(BAD, with_slides, strict=False))
    store = FeatureStore.open_or_create(str(copied.features), {**CONFIG, "dim": 32})
    for name, one in bad.items():
        slide = one.case.slides[-1]
        (path,) = copied.features.rglob(f"{slide}.h5")
        path.unlink()
        if name == "missing":
            continue
        dim = 16 if name == "dimensions" else 32
        write_slide_features(store, slide, np.ones((30, dim), np.float16))
        with h5py.File(path, "r+") as file:  # the store itself refuses what is not finite
            if name == "nan":
                file["features"][17, 3] = np.nan
            if name == "infinity":
                file["features"][2, 0] = np.inf
    return copied, bad


def test_unusable_slides_are_named_and_left_out(
    cases: list[TrainCase], spoilt: tuple[Stage1Inputs, dict[str, TrainCase]]
) -> None:
    copied, bad = spoilt
    told: list[BadInput] = []
    inputs = opened(copied, told)
    inputs.bags = BagReader(str(copied.features), BagConfig(size=400, seed=5))  # every row
    chunk = inputs.chunk(cases, epoch=0, training=True)
    reasons = {one.case_id: one.reason for one in told}
    assert {one.modality for one in told} == {"wsi"}
    assert reasons.keys() == {one.case.case_id for one in bad.values()}
    for name, one in bad.items():
        assert one.case.case_id in reasons[one.case.case_id]
        assert BAD[name] in reasons[one.case.case_id]
    left = {chunk.case_ids[place] for place in chunk.batch.bag_cases.tolist()}
    with_slides = {one.case.case_id for one in cases if "wsi" in one.modalities}
    assert left == with_slides - reasons.keys()
    assert torch.isfinite(chunk.batch.bags).all()
    reports = {chunk.case_ids[place] for place in chunk.batch.token_cases.tolist()}
    assert reports == {one.case.case_id for one in cases if "text" in one.modalities}


def test_a_chunk_of_nothing_but_unusable_slides_has_no_bags(
    spoilt: tuple[Stage1Inputs, dict[str, TrainCase]],
) -> None:
    copied, bad = spoilt
    told: list[BadInput] = []
    chunk = opened(copied, told).chunk([bad["missing"]], epoch=0, training=True)
    assert chunk.batch.bags is None
    assert chunk.batch.bag_cases is None
    assert [one.case_id for one in told] == [bad["missing"].case.case_id]


def marked(step: int) -> list[Chunk]:
    """A chunk that says which step it is of."""
    none = torch.zeros(0, dtype=torch.int64)
    return [Chunk(batch=MultimodalBatch(num_cases=0), case_ids=(str(step),), cancer=none)]


class Prepares:
    """Remembers which steps were prepared and by which thread."""

    def __init__(self, broken: dict[int, Exception] | None = None) -> None:
        self.steps: list[int] = []
        self.threads: set[int] = set()
        self.broken = broken or {}

    def __call__(self, step: int) -> list[Chunk]:
        self.steps.append(step)
        self.threads.add(threading.get_ident())
        if step in self.broken:
            raise self.broken[step]
        return marked(step)


def settled(prepares: Prepares, num_steps: int) -> None:
    until = time.monotonic() + 10
    while len(prepares.steps) < num_steps and time.monotonic() < until:
        time.sleep(0.005)


def test_steps_come_in_order_each_prepared_once_one_ahead() -> None:
    prepares = Prepares()
    with Ahead(prepares, 6) as ahead:
        for step in range(2, 6):  # as a resumed run asks for them
            assert ahead.get(step)[0].case_ids == (str(step),)
            settled(prepares, min(step, 4))
            assert max(prepares.steps) <= step + 1
        time.sleep(0.05)  # for the thread, had it been given more
    assert prepares.steps == [2, 3, 4, 5], "and none beyond the last step"
    assert len(prepares.threads) == 2, "this thread and one other"


def test_another_step_than_the_one_prepared_is_prepared_when_asked_for() -> None:
    prepares = Prepares()
    with Ahead(prepares, 100) as ahead:
        assert [ahead.get(step)[0].case_ids for step in (0, 7, 3)] == [("0",), ("7",), ("3",)]


def test_an_error_in_the_thread_comes_out_with_its_type_at_its_step() -> None:
    prepares = Prepares({1: FeatureError("slide s, row 3: not finite"), 3: OSError("gone")})
    with Ahead(prepares, 9) as ahead:
        assert ahead.get(0)
        with pytest.raises(FeatureError, match="slide s, row 3"):
            ahead.get(1)
        assert ahead.get(2)[0].case_ids == ("2",)
        with pytest.raises(OSError, match="gone"):
            ahead.get(3)


def test_leaving_ends_the_thread() -> None:
    before = threading.active_count()
    ahead = Ahead(Prepares(), 9)
    with ahead:
        ahead.get(0)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_cases_are_picked_by_index(cases: list[TrainCase]) -> None:
    assert spread(cases, np.array([3, 0])) == [cases[3], cases[0]]
