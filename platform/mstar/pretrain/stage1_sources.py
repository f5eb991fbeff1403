"""Opens what stage 1 reads: features, reports as tokens, expression."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from jaxtyping import Int64

from mstar.data.bags import BagConfig, BagReader
from mstar.data.report_duplicates import near_duplicates
from mstar.data.report_tokens import ReportTokenizer
from mstar.data.reports import ReportTable, read_reports
from mstar.data.rna.binning import BinningConfig, fit_edges
from mstar.data.rna.store import ExpressionStore
from mstar.errors import CohortError, ConfigError, FeatureError
from mstar.pretrain.stage1_batches import CaseInputs
from mstar.pretrain.stage1_cases import BadInput, Sources, Stage1Cases, TrainCase
from mstar.pretrain.stage1_config import Stage1Config
from mstar.storage import objects


def open_inputs(
    config: Stage1Config, on_bad: Callable[[BadInput], None]
) -> tuple[CaseInputs, Sources]:
    """Readers of the modalities that take part; reports are tokenised once, here.

    on_bad: told of inputs that turn out unusable while they are read.
    """
    bags = None
    if "wsi" in config.on:
        bags = BagReader(config.features, BagConfig(size=config.bag_patches, seed=config.seed))
    reports, expression = _open_reports(config), _open_expression(config)
    tokenizer, token_ids = None, {}
    if reports is not None:
        tokenizer = ReportTokenizer.from_config(config.tokens)
        keys = list(reports)
        made = tokenizer.token_ids([reports[key].text for key in keys])
        token_ids = dict(zip(keys, made, strict=True))
    inputs = CaseInputs(
        bags=bags,
        token_ids=token_ids,
        tokenizer=tokenizer,
        expression=expression,
        bins=config.bins,
        token_dropout=config.token_dropout,
        seed=config.seed,
        on_bad=on_bad,
    )
    return inputs, Sources(
        bags=bags,
        reports=reports,
        expression=expression,
        token_counts={key: len(ids) for key, ids in token_ids.items()},
        listed=_listed(bags),
    )


def _listed(bags: BagReader | None) -> frozenset[str] | None:
    """The slides of a store that is not on a disk."""
    if bags is None or objects.is_local(bags.store.root):
        return None
    return frozenset(bags.store.done_ids())


def _open_reports(config: Stage1Config) -> ReportTable | None:
    if "text" not in config.on:
        return None
    return read_reports(objects.join(config.cohort, "reports.csv"))


def _open_expression(config: Stage1Config) -> ExpressionStore | None:
    if "gene" not in config.on:
        return None
    return ExpressionStore.open(objects.join(config.cohort, "expression"))


def fitted_bins(
    config: Stage1Config, expression: ExpressionStore | None, cases: Stage1Cases
) -> BinningConfig:
    """The bins; quantile edges come from the training cases alone."""
    if expression is None or config.binning != "quantile":
        return config.bins
    return fit_edges(config.bins, expression.rows(expression_rows(expression, cases.train)))


def expression_rows(store: ExpressionStore, cases: Sequence[TrainCase]) -> list[str]:
    """The RNA rows of the cases that have one.

    Raises:
        CohortError: none has.
    """
    rows = [one.case.rna for one in cases if "gene" in one.modalities and one.case.rna]
    if not rows:
        raise CohortError(f"{store.folder}: no case has RNA. Leave it out with --modalities.")
    return rows


def feature_dim(bags: BagReader | None, cases: Sequence[TrainCase]) -> int | None:
    """The length of the features, which all slides of a store share; None without slides.

    Raises:
        ConfigError: no case has slides.
    """
    if bags is None:
        return None
    for one in cases:
        if "wsi" in one.modalities:
            with suppress(FeatureError):  # in a bucket, it is named when its turn comes
                return int(bags.views(one.case.case_id, one.case.slides)[0].shape[1])
    raise ConfigError("no case has slides with features. Leave wsi out with --modalities.")


def duplicates_of(cases: Stage1Cases, inputs: CaseInputs) -> Int64[np.ndarray, " case"]:
    """Which validation cases have near-duplicate reports: those with the same number."""
    if inputs.tokenizer is None:
        return np.arange(len(cases.val))
    reports = [one.case.report if "text" in one.modalities else None for one in cases.val]
    return near_duplicates(reports, inputs.token_ids.__getitem__)
