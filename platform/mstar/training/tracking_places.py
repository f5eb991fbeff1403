"""Where runs and spools go: a job's MLflow address, and its local folder."""

import os
from pathlib import Path


def tracking_uri(out: str) -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in the output, or in `state_folder` for s3://."""
    stated = os.environ.get("MLFLOW_TRACKING_URI")
    return stated or f"sqlite:///{state_folder(out) / 'mlflow.db'}"


def state_folder(out: str) -> Path:
    """The local folder for a job's spool and default MLflow file.

    That is the output itself when it is local; for s3:// it is MSTAR_STATE, else ~/.mstar.
    """
    if "://" not in out:
        return Path(out).absolute()
    if out.startswith("file://"):
        return Path(out.removeprefix("file://"))
    return Path(os.environ.get("MSTAR_STATE") or Path.home() / ".mstar").absolute()


def tracking_notes(uri: str, out: str, *, num_nodes: int) -> list[str]:
    """What a user should know about where the runs go, empty when there is nothing."""
    notes = []
    if uri.startswith("sqlite:") and num_nodes > 1:
        notes.append(
            f"MLflow is the SQLite file {uri.removeprefix('sqlite:///')} on a cluster of "
            f"{num_nodes} nodes: jobs started on different nodes do not share it, and it may be "
            "lost with its node; set MLFLOW_TRACKING_URI to a tracking server"
        )
    if uri.startswith("sqlite:") and not os.environ.get("MLFLOW_TRACKING_URI") and "s3://" in out:
        path = uri.removeprefix("sqlite:///")
        notes.append(f"MLflow cannot live on {out}: its runs are in {path} on this machine")
    return notes
