"""Validation: all directions, held-out geometry, zero-shot types, near-duplicate reports."""

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from mstar.data.bags import BagConfig, BagReader
from mstar.data.cancer_types import CANCER_TYPES
from mstar.data.cases import read_cases
from mstar.data.report_duplicates import near_duplicates
from mstar.data.report_tokens import ReportTokenizer
from mstar.data.rna.binning import BinningConfig
from mstar.data.rna.store import ExpressionStore
from mstar.losses.cases import MODALITIES
from mstar.losses.recall import KS, alignment, uniformity
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.gene_encoder import GeneEncoder, GeneEncoderConfig
from mstar.models.multimodal import MultimodalModel
from mstar.models.text_encoder import TextEncoderConfig, pretrained_text_encoder
from mstar.pretrain.cached_step import on_device
from mstar.pretrain.stage1_batches import CaseInputs
from mstar.pretrain.stage1_cases import TrainCase
from mstar.pretrain.stage1_validate import (
    FEWEST_CASES,
    PROMPTS,
    CaseVectors,
    class_vectors,
    embed_cases,
    measure,
    zero_shot,
)
from support.ranks import run_ranks
from support.stage1_inputs import Stage1Inputs, write_stage1_inputs
from support.threads import one_thread
from support.tiny_bert import write_tiny_bert

DIM = 16
DIRECTIONS = [f"{first}_to_{second}" for first, second in permutations(MODALITIES, 2)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of a few numbers: threads would only wait for one another."""
    with one_thread():
        yield


def vectors_of(num: int, *, noise: float = 0.3, seed: int = 0, missing: float = 0.2) -> CaseVectors:
    """Cases whose modalities agree but for noise."""
    rng = np.random.default_rng(seed)
    cancer = rng.integers(0, 4, num)
    base = rng.standard_normal((num, DIM)) + 2 * rng.standard_normal((4, DIM))[cancer]
    has = {name: rng.random(num) >= missing for name in MODALITIES}
    rows = {name: base + noise * rng.standard_normal((num, DIM)) for name in MODALITIES}
    return CaseVectors(
        case_ids=tuple(f"case-{i}" for i in range(num)),
        cancer=cancer,
        vectors={name: np.where(has[name][:, None], rows[name], 0) for name in MODALITIES},
        has=has,
    )


def test_all_six_directions_are_measured_with_their_yardsticks() -> None:
    found = measure(vectors_of(60), duplicates=np.arange(60))
    assert list(found.directions) == DIRECTIONS
    metrics = found.metrics
    for name in DIRECTIONS:
        for k in KS:
            for prefix in ("", "within_"):
                value = metrics[f"val.{prefix}recall_at_{k}.{name}"]
                low = metrics[f"val.{prefix}recall_low_at_{k}.{name}"]
                high = metrics[f"val.{prefix}recall_high_at_{k}.{name}"]
                assert 0 <= low <= value <= high <= 1
                assert 0 < metrics[f"val.{prefix}chance_at_{k}.{name}"] <= 1
            chance = metrics[f"val.chance_at_{k}.{name}"]
            assert chance <= metrics[f"val.type_ceiling_at_{k}.{name}"] <= 1
        assert metrics[f"val.median_rank.{name}"] == found.directions[name].median_rank
    tens = [metrics[f"val.recall_at_10.{name}"] for name in DIRECTIONS]
    assert metrics["val.mean_recall_at_10"] == pytest.approx(np.mean(tens))
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_direction_counts_only_cases_with_both_members() -> None:
    vectors = vectors_of(60)
    found = measure(vectors, duplicates=np.arange(60))
    for first, second in permutations(MODALITIES, 2):
        rows = [i for i in range(60) if vectors.has[first][i] and vectors.has[second][i]]
        assert found.directions[f"{first}_to_{second}"].num_queries == len(rows) < 60
        a, b = vectors.vectors[first][rows], vectors.vectors[second][rows]
        name = "-".join(sorted((first, second)))
        assert found.metrics[f"val.alignment.{name}"] == pytest.approx(alignment(a, b))
        cosines = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
        own = np.argsort(-cosines, axis=1).argsort(axis=1).diagonal() < 5
        assert found.metrics[f"val.recall_at_5.{first}_to_{second}"] == pytest.approx(own.mean())
    for name in MODALITIES:
        there = vectors.vectors[name][vectors.has[name]]
        assert found.metrics[f"val.uniformity.{name}"] == pytest.approx(uniformity(there))


def test_shuffling_within_the_type_leaves_the_ceiling_and_nothing_more() -> None:
    vectors = vectors_of(120, noise=0.1, missing=0.0)
    rng = np.random.default_rng(1)
    order = np.arange(120)
    for cancer in range(4):
        mine = np.flatnonzero(vectors.cancer == cancer)
        order[mine] = rng.permutation(mine)
    shuffled = CaseVectors(
        case_ids=vectors.case_ids,
        cancer=vectors.cancer,
        vectors={**vectors.vectors, "text": vectors.vectors["text"][order]},
        has=vectors.has,
    )
    paired = measure(vectors, duplicates=np.arange(120)).directions["wsi_to_text"]
    apart = measure(shuffled, duplicates=np.arange(120)).directions["wsi_to_text"]
    for one in (*paired.overall[:3], *paired.within[:3]):
        assert one.low > one.ceiling
    for one in (*apart.overall[:3], *apart.within[:3]):
        assert one.low <= one.ceiling * 1.05


def test_near_duplicate_reports_count_where_reports_take_part() -> None:
    """All reports say the same: whoever is found is right, but only where it is about reports."""
    found = measure(vectors_of(40, noise=50.0), duplicates=np.zeros(40, int)).metrics
    for name in DIRECTIONS:
        assert (found[f"val.recall_at_1.{name}"] == 1) == ("text" in name)


def test_too_few_cases_are_not_measured() -> None:
    few = vectors_of(FEWEST_CASES - 1, missing=0.0)
    assert measure(few, duplicates=np.arange(len(few.cancer))).metrics == {}
    enough = vectors_of(FEWEST_CASES, missing=0.0)
    assert len(measure(enough, duplicates=np.arange(FEWEST_CASES)).directions) == 6


def test_zero_shot_equals_scikit_learn_and_names_only_types_that_are_there() -> None:
    vectors = vectors_of(80, noise=2.0)
    vectors.cancer[vectors.cancer == 2] = 3  # nobody has type 2
    classes = np.random.default_rng(3).standard_normal((4, DIM))
    found = zero_shot(vectors, classes)
    rows = np.flatnonzero(vectors.has["wsi"])
    unit = classes / np.linalg.norm(classes, axis=1, keepdims=True)
    scores = vectors.vectors["wsi"][rows] @ unit.T
    scores[:, 2] = -np.inf
    truth, guess = vectors.cancer[rows], scores.argmax(1)
    assert found["zero_shot_accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert found["zero_shot_balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(truth, guess)
    )
    assert found["zero_shot_chance"] == pytest.approx(1 / 3)
    flat = zero_shot(vectors, np.ones((4, DIM)))
    assert flat["zero_shot_balanced_accuracy"] == pytest.approx(flat["zero_shot_chance"])


def make_model(text: Path | None, *, genes: int) -> MultimodalModel:
    torch.manual_seed(0)
    gene = GeneEncoderConfig(
        num_genes=genes,
        dim=12,
        heads=2,
        head_dim=8,
        random_features=16,
        output_dim=DIM,
        gene_vectors="learned",
    )
    config = AggregatorConfig(input_dim=32, dim=DIM, heads=2, landmarks=4)
    return MultimodalModel(
        Aggregator(config),
        None
        if text is None
        else pretrained_text_encoder(TextEncoderConfig(name=str(text), output_dim=DIM)),
        GeneEncoder(gene),
    )


def opened(made: Stage1Inputs) -> tuple[CaseInputs, list[TrainCase]]:
    """Slides and RNA alone, so that ranks need not import transformers."""
    inputs = CaseInputs(
        bags=BagReader(str(made.features), BagConfig(size=16)),
        token_ids={},
        tokenizer=None,
        expression=ExpressionStore.open(str(made.cohort / "expression")),
        bins=BinningConfig(),
        seed=0,
        on_bad=[].append,
    )
    cases = [
        TrainCase(
            case=case,
            modalities=frozenset(
                name for name, there in (("wsi", case.slides), ("gene", case.rna)) if there
            ),
            cancer=len(case.slides),
        )
        for case in read_cases(str(made.cohort / "cases.csv"))
    ]
    return inputs, cases


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Stage1Inputs:
    return write_stage1_inputs(tmp_path_factory.mktemp("validate"), cases=9, missing=0.2)


def embedded(made: Stage1Inputs, num_cases: int, chunk_cases: int, rank: int = 0) -> CaseVectors:
    inputs, cases = opened(made)
    return embed_cases(
        make_model(None, genes=len(inputs.expression.genes)),  # type: ignore[union-attr]
        inputs,
        cases[:num_cases],
        chunk_cases=chunk_cases,
        precision="fp32",
        rank=rank,
    )


def assert_equal(found: CaseVectors, expected: CaseVectors) -> None:
    assert found.case_ids == expected.case_ids
    np.testing.assert_array_equal(found.cancer, expected.cancer)
    for name in MODALITIES:
        np.testing.assert_array_equal(found.has[name], expected.has[name])
        np.testing.assert_allclose(found.vectors[name], expected.vectors[name], atol=1e-5)


def test_vectors_are_those_of_each_case_alone(made: Stage1Inputs) -> None:
    """Whatever the chunks; without dropout; rows of what a case lacks are zeros."""
    found = embedded(made, 9, 4)
    assert_equal(embedded(made, 9, 100), found)
    inputs, cases = opened(made)
    model = make_model(None, genes=len(inputs.expression.genes)).eval()
    for place, one in enumerate(cases):
        batch = inputs.chunk([one], epoch=0, training=False).batch
        with torch.no_grad():
            output = model(on_device(batch, torch.device("cpu")))
        for name in MODALITIES:
            assert found.has[name][place] == (name in one.modalities)
            np.testing.assert_allclose(
                found.vectors[name][place], getattr(output, name)[0].numpy(), atol=1e-5
            )
    assert found.both("wsi", "gene").tolist() == [
        i for i, one in enumerate(cases) if {"wsi", "gene"} <= one.modalities
    ]


def embedded_by_a_rank(made: Stage1Inputs) -> list[CaseVectors]:
    """Nine cases; and one, of which the second rank has none."""
    return [embedded(made, num, 2, dist.get_rank()) for num in (9, 1)]


def test_two_ranks_embed_what_one_does(made: Stage1Inputs) -> None:
    for found in run_ranks(embedded_by_a_rank, 2, made):
        assert_equal(found[0], embedded(made, 9, 2))
        assert_equal(found[1], embedded(made, 1, 2))


def test_a_class_vector_is_the_mean_of_its_prompts(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path, ["invasive", "carcinoma"], hidden=16)
    model, tokenizer = make_model(tmp_path, genes=5), ReportTokenizer(tmp_path, max_tokens=64)
    model.train()
    cancers = ["BRCA", "LUAD", "own type"]
    found = class_vectors(model, tokenizer, cancers, "fp32")
    model.eval()
    for row, cancer in zip(found, cancers, strict=True):
        units = []
        for prompt in PROMPTS:
            tokens = tokenizer.encode(prompt.format(name=CANCER_TYPES.get(cancer, cancer)))
            ids = torch.from_numpy(tokens.input_ids)[None]
            with torch.no_grad():
                vector = model.text_encoder(ids, torch.from_numpy(tokens.attention_mask)[None])[0]
            units.append((vector / vector.norm()).numpy())
        mean = np.mean(units, axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def exact_groups(texts: Sequence[list[int]]) -> set[frozenset[int]]:
    """Connected by a Jaccard index of 0.9 or more of neighbouring pairs, by plain sets."""
    pairs = [set(zip([None, *ids[:-1]], ids, strict=True)) for ids in texts]
    groups = [{i} for i in range(len(texts))]
    for i, j in combinations(range(len(texts)), 2):
        if len(pairs[i] & pairs[j]) >= 0.9 * len(pairs[i] | pairs[j]):
            merged = groups[i] | groups[j]
            for member in merged:
                groups[member] = merged
    return {frozenset(group) for group in groups}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.sampled_from([1, 2, 30, 400, 4000]))
def test_near_duplicates_equal_the_exact_jaccard_index(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    texts: list[list[int]] = []
    for _ in range(3):  # three reports, each with copies that differ more and more
        text = rng.integers(0, 30_000, length)
        for share in (0.0, 0.01, 0.025, 0.05, 0.1):
            copy = text.copy()
            changed = rng.random(length) < share
            copy[changed] = rng.integers(0, 30_000, int(changed.sum()))
            texts.append(copy.tolist())
    ids = {str(i): np.array(text, np.int64) for i, text in enumerate(texts)}
    found = near_duplicates(list(ids), ids.__getitem__)
    grouped = {frozenset(np.flatnonzero(found == number).tolist()) for number in set(found)}
    assert grouped == exact_groups(texts)


def test_cases_without_a_report_are_nobodys_duplicate() -> None:
    ids: dict[str, Any] = {"a": np.array([5, 6, 7]), "b": np.array([5, 6, 7])}
    found = near_duplicates(["a", None, "b", None], ids.__getitem__)
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3
    assert near_duplicates([None, None], ids.__getitem__).tolist() == [0, 1]
