"""Which samples of a label table have features: found, left out and counted, or refused."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from mstar.data.label_tables.matching import Match, match_slides
from mstar.data.label_tables.samples import LabelTable, Sample
from mstar.errors import FeatureError
from mstar.features.store import FeatureStore

Stores = Sequence[FeatureStore | Collection[str]]


def store_ids(stores: Stores) -> frozenset[str]:
    """The slide ids of all stores; FeatureError when a slide is in two of them."""
    seen: dict[str, str] = {}
    for number, store in enumerate(stores, 1):
        name, slides = _named_ids(store, number)
        for slide in slides:
            if slide in seen:
                raise FeatureError(
                    f"slide {slide}: expected it in one feature store, got it in {seen[slide]} and "
                    f"in {name}. Remove it from one of them, or name one of them only."
                )
            seen[slide] = name
    return frozenset(seen)


def with_features(
    table: LabelTable, stores: Stores, max_missing: float
) -> tuple[list[Sample], Match, Counter[str]]:
    """The samples all whose slides have features, under the stores' ids; the others counted."""
    match = match_slides(table.samples, store_ids(stores))
    match.refuse_ambiguity(table)
    kept, lacking, dropped = [], [], Counter[str]()
    for sample in table.samples:
        if not sample.slides:
            dropped["no slide in the label table"] += 1
        elif any(slide not in match.resolved for slide in sample.slides):
            lacking.append(sample)
        else:
            slides = tuple(match.resolved[slide] for slide in sample.slides)
            kept.append(replace(sample, slides=slides))
    if len(lacking) > max_missing * len(table.samples) or not kept:
        raise _missing(table, match, lacking, max_missing)
    if lacking:
        dropped["no features of all its slides"] += len(lacking)
    return kept, match, dropped


def _missing(
    table: LabelTable, match: Match, lacking: Sequence[Sample], max_missing: float
) -> FeatureError:
    share = f"{len(lacking):,} of {len(table.samples):,} samples"
    at = lacking[0] if lacking else table.samples[0]
    slide = next((slide for slide in at.slides if slide not in match.resolved), "none named")
    return FeatureError(
        f"{table.uri}: row {at.row:,}, case {at.case_id}: expected features of slide {slide}, got "
        f"none; {share} lack features, {max_missing:.1%} are allowed ({match}). Embed the other "
        "slides, correct the ids, or allow a share with --max-missing."
    )


def _named_ids(store: FeatureStore | Collection[str], number: int) -> tuple[str, Iterable[str]]:
    if isinstance(store, FeatureStore):
        return store.root, store.done_ids()
    return f"store {number}", store
