"""Every failure signature is said when it is there, once, and not in a healthy run."""

import math
from collections.abc import Callable, Iterable

import pytest

from mstar.pretrain.stage1_watch import (
    COLLAPSE_STEPS,
    COLLAPSE_VALIDATIONS,
    PLATEAU_STEPS,
    Stage1Watch,
)

PAIRS = 32
Row = dict[str, float]


def healthy(step: int) -> Row:
    """Warm-up of 20 steps, then losses fall from log N, embeddings spread, the scale grows."""
    done = min(1.0, max(0, step - 10) / 60)
    loss = math.log(PAIRS) * (1 - 0.7 * done)
    return {
        "loss": 3 * loss,
        **{f"loss.{name}": loss for name in ("wsi_text", "wsi_gene", "text_gene")},
        **{f"pairs.{name}": float(PAIRS) for name in ("wsi_text", "wsi_gene", "text_gene")},
        "loss.triplet": 0.3,
        **{f"uniformity.{name}": -0.01 - 3 * done for name in ("wsi", "text", "gene")},
        "logit_scale": 14.3 + 40 * done,
        "lr": 1e-4 * min(step, 20) / 20 * (1 - step / 1000),
        "grad_norm": 1.0,
    }


def validated(uniformity: float) -> Row:
    return {"val.uniformity.text": uniformity, "val.recall_at_10.wsi_to_text": 0.5}


def said(rows: Iterable[tuple[int, Row]]) -> list[str]:
    watch = Stage1Watch(max_scale=100.0)
    return [text for step, row in rows for text in watch.look(step, row)]


def run_of(change: Callable[[int, Row], Row], num_steps: int = 200) -> list[str]:
    return said((step, change(step, healthy(step))) for step in range(1, num_steps))


def test_a_healthy_run_is_silent() -> None:
    assert run_of(lambda step, row: row) == []
    assert said((step, validated(-1.5)) for step in range(9)) == []


@pytest.mark.parametrize("name", ["wsi", "text", "gene"])
def test_collapse_names_the_modality_once(name: str) -> None:
    (text,) = run_of(lambda step, row: row | {f"uniformity.{name}": -0.01} if step > 90 else row)
    assert text.startswith(f"step {90 + COLLAPSE_STEPS}: collapse: {name} embeddings")
    assert "uniformity -0.010" in text


def test_collapse_that_passes_and_comes_back_is_said_again() -> None:
    def twice(step: int, row: Row) -> Row:
        gone = 50 < step < 50 + 2 * COLLAPSE_STEPS or step > 120
        return row | {"uniformity.wsi": 0.0 if gone else -2.0}

    texts = run_of(twice)
    assert len(texts) == 2
    assert texts[1].startswith(f"step {120 + COLLAPSE_STEPS}:")


def test_a_short_collapse_is_not_said() -> None:
    def short(step: int, row: Row) -> Row:
        return row | {"uniformity.wsi": 0.0 if step % COLLAPSE_STEPS else -1.0}

    assert run_of(short) == []


def test_collapse_of_the_held_out_cases_is_told_apart() -> None:
    """In training, dropout spreads vectors that are all the same without it."""
    rows: list[tuple[int, Row]] = []
    for step in range(1, 200):
        rows.append((step, healthy(step)))
        if step % 10 == 0:
            rows.append((step, validated(-0.001 if step > 100 else -1.0)))
    (text,) = said(rows)
    assert text.startswith(f"step {100 + 10 * COLLAPSE_VALIDATIONS}: collapse: held-out text")
    assert f"for {COLLAPSE_VALIDATIONS} validations" in text


def test_the_clamp_is_said_when_reached() -> None:
    (text,) = run_of(lambda step, row: row | {"logit_scale": 99.99} if step >= 77 else row)
    assert text.startswith("step 77: temperature at the clamp: the logit scale is 100.0 of at most")
    assert run_of(lambda step, row: row | {"logit_scale": 99.0}) == []


@pytest.mark.parametrize("name", ["wsi_text", "wsi_gene", "text_gene"])
def test_a_plateau_names_the_pairing(name: str) -> None:
    def stuck(step: int, row: Row) -> Row:
        return row | {f"loss.{name}": math.log(PAIRS) * (1.05 if step % 2 else 0.99)}

    (text,) = run_of(stuck)
    assert f"plateau at log N: loss.{name} is" in text
    assert f"with {PAIRS} pairs (log N = 3.466) for {PLATEAU_STEPS} steps" in text


def test_a_plateau_needs_as_many_steps_and_two_pairs() -> None:
    stuck = {"loss.wsi_text": math.log(PAIRS)}
    assert run_of(lambda step, row: row | stuck, 20 + PLATEAU_STEPS) == []
    assert len(run_of(lambda step, row: row | stuck, 21 + PLATEAU_STEPS)) == 1
    alone = {"loss.wsi_text": 0.0, "pairs.wsi_text": 1.0}
    assert run_of(lambda step, row: row | alone) == []
    assert run_of(lambda step, row: row | {"loss.triplet": 9.0, "pairs.triplet": 32.0}) == []


def test_nothing_is_said_while_the_rate_rises() -> None:
    """A constant encoder at log N is how some runs begin."""

    def start(step: int, row: Row) -> Row:
        row |= {"uniformity.text": 0.0, "loss.wsi_text": math.log(PAIRS), "lr": step * 1e-6}
        return row

    assert run_of(start) == []
    assert said((step, row) for step in range(99) for row in (start(step + 1, healthy(1)),)) == []


def test_several_findings_of_one_step_are_all_said() -> None:
    stuck = {"logit_scale": 100.0, "loss.wsi_gene": 3.5, "uniformity.gene": 0.0}
    texts = run_of(lambda step, row: row | stuck)
    assert sorted(text.split(": ")[1].split()[0] for text in texts) == [
        "collapse",
        "plateau",
        "temperature",
    ]
