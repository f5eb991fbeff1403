"""A worker that does nothing, for measuring what moves the work."""

from mstar.embed.plan import Bundle
from mstar.embed.results import Tally


class NoopWorker:
    """Says that every slide is done."""

    def run(self, bundle: Bundle) -> Tally:
        return Tally(done=len(bundle.slides), patches=len(bundle.slides))
