"""Overviews of a cohort's grids for the tracker: one contact sheet, bounded in size."""

import io
import tempfile
from itertools import islice
from pathlib import Path

from PIL import Image

from mstar.slides.overview import contact_sheet
from mstar.storage.objects import list_files, read_bytes
from mstar.training.tracker import Tracker

MAX_ON_SHEET = 48


def log_overviews(tracker: Tracker, root: str) -> None:
    """Log the contact sheet of the overviews under `root`, if there are any."""
    if not tracker.run_id:  # nothing is tracked, so nothing need be fetched
        return
    files = list(islice(list_files(root, suffix=".jpg"), MAX_ON_SHEET))
    if not files:
        return
    labelled = [
        (file.rel.removesuffix(".jpg"), Image.open(io.BytesIO(read_bytes(file.uri))))
        for file in sorted(files, key=lambda file: file.rel)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contact_sheet.jpg"
        contact_sheet(labelled).save(path, quality=85)
        tracker.log_artifact(path)
