"""Embedding in this process, without Ray: a few slides, by the job's own worker.

The store, its claims and its failure ledger are those of `mstar embed`, so either goes on where the
other stopped.
"""

from collections.abc import Sequence

from mstar.embed.assembly import EmbedPlan, make_worker, store_identity
from mstar.embed.plan import Bundle
from mstar.embed.results import Tally
from mstar.features.store import FeatureStore
from mstar.models.encoder_table import find_encoder
from mstar.schema import SlideRef


def embed_here(plan: EmbedPlan, slides: Sequence[SlideRef]) -> tuple[FeatureStore, Tally]:
    """Embed the slides that are missing from the plan's store; what fails is in its ledger."""
    identity = store_identity(plan, find_encoder(plan.config.encoder))
    store = FeatureStore.open_or_create(plan.config.out, identity)
    missing = tuple(slide for slide in slides if not store.has(slide.slide_id))
    if not missing:
        return store, Tally()
    worker = make_worker(plan)
    try:
        return store, worker.run(Bundle(number=0, slides=missing))
    finally:
        worker.close()
