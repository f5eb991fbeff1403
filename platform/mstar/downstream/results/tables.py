"""The tables as columns: what goes to CSV and Parquet, and what the other formats are cut from."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mstar.config import fingerprint
from mstar.downstream.results.across import Average, MethodPair, RankedMethods
from mstar.downstream.results.rows import ResultRow
from mstar.downstream.results.sources import LeftOut

_F, _I, _S, _B = pa.float64(), pa.int64(), pa.string(), pa.bool_()

RESULT_COLUMNS: dict[str, pa.DataType] = {
    **dict.fromkeys(("task", "part", "kind", "category", "dataset", "cohort"), _S),
    **dict.fromkeys(("data_source", "protocol", "encoder", "head", "metric"), _S),
    **dict.fromkeys(("value", "low", "high", "level"), _F),
    "interval": _S,
    "seed_std": _F,
    **dict.fromkeys(("seeds", "folds", "rank", "rivals"), _I),
    "winner": _B,
    "no_winner": _S,
    **dict.fromkeys(("versus_encoder", "versus_head"), _S),
    **dict.fromkeys(("difference", "difference_low", "difference_high", "p", "p_holm"), _F),
    **dict.fromkeys(("p_method", "stars", "difference_note"), _S),
    "p_paper_compat": _F,
    **dict.fromkeys(("patients", "samples", "classes", "num_classes"), _I),
    **dict.fromkeys(("resamples", "undefined_resamples", "trials", "leaked_patients"), _I),
    "averaged": _B,
    **dict.fromkeys(("trained_on", "marks", "warning", "config", "labels", "splits"), _S),
    **dict.fromkeys(("features", "mstar_version", "source"), _S),
}
"""Columns of results.csv in their order; what they mean is in platform/docs/results.md."""


def result_table(rows: Sequence[ResultRow]) -> pa.Table:
    """One row a task × encoder × head."""
    return _table([_result(row) for row in rows], RESULT_COLUMNS)


def metric_table(rows: Sequence[ResultRow]) -> pa.Table:
    """Every metric of every row, with its interval."""
    columns = {
        **dict.fromkeys(("task", "part", "data_source", "protocol"), _S),
        **dict.fromkeys(("encoder", "head", "metric"), _S),
        **dict.fromkeys(("value", "low", "high", "seed_std"), _F),
        **dict.fromkeys(("resamples", "undefined_resamples"), _I),
    }
    cells = [
        {**_study(row), "metric": name, **_estimate(one)}
        for row in rows
        for name, one in row.others.items()
    ]
    return _table(cells, columns)


def fold_table(rows: Sequence[ResultRow]) -> pa.Table:
    """The task's metric in every fold, a mean over the seeds."""
    columns = dict.fromkeys(("task", "part", "data_source", "protocol", "encoder", "head"), _S)
    cells = [
        {**_study(row), "metric": row.estimate.metric, "fold": fold, "value": _number(value)}
        for row in rows
        for fold, value in zip(row.estimate.folds, row.estimate.fold_values, strict=True)
    ]
    return _table(cells, {**columns, "metric": _S, "fold": _S, "value": _F})


def average_table(averages: Sequence[Average]) -> pa.Table:
    """Means of methods over tasks, one vote a cohort."""
    columns = {
        **dict.fromkeys(("data_source", "protocol", "metric", "encoder", "head"), _S),
        "value": _F,
        **dict.fromkeys(("tasks", "cohorts"), _I),
    }
    return _table([{name: getattr(one, name) for name in columns} for one in averages], columns)


def rank_table(ranked: Sequence[RankedMethods]) -> pa.Table:
    """Average ranks, and the difference that is needed to tell two methods apart."""
    columns = {
        **dict.fromkeys(("data_source", "protocol", "kind", "method"), _S),
        "average_rank": _F,
        "cohorts": _I,
        **dict.fromkeys(("critical_difference", "friedman_p"), _F),
    }
    cells = [
        {
            "data_source": one.data_source,
            "protocol": one.protocol,
            "kind": one.kind,
            "method": method,
            "average_rank": rank,
            "cohorts": one.ranking.cohorts,
            "critical_difference": _number(one.ranking.critical_difference),
            "friedman_p": _number(one.ranking.friedman_p),
        }
        for one in ranked
        for method, rank in zip(one.ranking.methods, one.ranking.average_ranks, strict=True)
    ]
    return _table(cells, columns)


def pair_table(pairs: Sequence[MethodPair]) -> pa.Table:
    """Every two methods that differ in one thing, over tasks."""
    columns = {
        **dict.fromkeys(("data_source", "metrics"), _S),
        **dict.fromkeys(("first_encoder", "first_head", "second_encoder", "second_head"), _S),
        **dict.fromkeys(("tasks", "first_better", "second_better", "undecided", "few"), _I),
        "mean_difference": _F,
        "cohorts": _I,
        **dict.fromkeys(("wilcoxon_p", "smallest_p"), _F),
    }
    cells = [
        {
            "data_source": one.data_source,
            "metrics": "; ".join(one.metrics),
            **dict(zip(("first_encoder", "first_head"), one.first, strict=True)),
            **dict(zip(("second_encoder", "second_head"), one.second, strict=True)),
            **{n: getattr(one, n) for n in ("tasks", "first_better", "second_better")},
            **{n: getattr(one, n) for n in ("undecided", "few")},
            "mean_difference": _number(one.mean),
            "cohorts": len(one.test.differences),
            "wilcoxon_p": _number(one.test.p),
            "smallest_p": _number(one.test.smallest_p),
        }
        for one in pairs
    ]
    return _table(cells, columns)


def left_out_table(left_out: Sequence[LeftOut]) -> pa.Table:
    """Tasks that are not in the table, and why."""
    columns = dict.fromkeys(("task", "encoder", "head", "reason"), _S)
    return _table([{name: getattr(one, name) for name in columns} for one in left_out], columns)


def _result(row: ResultRow) -> dict[str, Any]:
    facts, estimate, contrast = row.predictions.facts, row.estimate, row.contrast
    cells = {
        **_study(row),
        **_estimate(estimate),
        **{n: getattr(row, n) for n in ("category", "dataset", "cohort", "rank", "rivals")},
        **{n: getattr(row, n) for n in ("winner", "averaged")},
        **{n: getattr(estimate, n) for n in ("metric", "level", "seeds", "patients", "samples")},
        **{n: getattr(estimate, n) for n in ("classes", "num_classes")},
        **{n: getattr(facts, n) for n in ("kind", "trials", "leaked_patients", "trained_on")},
        **{n: facts.digests.get(n, "") for n in ("labels", "splits", "features")},
        "interval": estimate.method,
        "folds": len(estimate.folds),
        "no_winner": "" if row.winner else row.no_winner,
        "marks": "; ".join(row.marks),
        "warning": facts.warning,
        "config": fingerprint(facts.config),
        "mstar_version": facts.mstar_version,
        "source": row.uri,
    }
    if contrast is not None:
        cells |= {"versus_encoder": contrast.encoder, "versus_head": contrast.head}
        cells |= {"stars": contrast.stars, "difference_note": contrast.note}
        cells |= {"p_holm": _number(contrast.p_holm)}
        cells |= {"p_paper_compat": _number(contrast.p_paper_compat)}
    if contrast is not None and contrast.difference is not None:
        one = contrast.difference
        cells |= {"difference": one.value, "p_method": one.method, "p": _number(one.p)}
        cells |= {"difference_low": _number(one.low), "difference_high": _number(one.high)}
    return {name: _number(v) if isinstance(v, float) else v for name, v in cells.items()}


def _study(row: ResultRow) -> dict[str, Any]:
    p = row.predictions
    own = {name: getattr(p, name) for name in ("task", "part", "encoder", "head")}
    return {**own, "data_source": p.facts.data_source, "protocol": p.facts.protocol}


def _estimate(estimate: Any) -> dict[str, Any]:
    names = ("value", "low", "high", "seed_std")
    return {
        **{name: _number(getattr(estimate, name)) for name in names},
        "resamples": estimate.resamples,
        "undefined_resamples": estimate.undefined,
    }


def _number(value: float) -> float | None:
    """Undefined numbers are empty cells."""
    return None if math.isnan(value) else float(value)


def _table(cells: Sequence[dict[str, Any]], columns: dict[str, pa.DataType]) -> pa.Table:
    made = {
        name: pa.array([row.get(name, "" if kind == _S else None) for row in cells], kind)
        for name, kind in columns.items()
    }
    return pa.table(made)
