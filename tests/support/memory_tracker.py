"""A tracker that keeps everything in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mstar.training.run_facts import flatten


@dataclass(slots=True)
class MemoryTracker:
    """Keeps everything in memory."""

    run_id: str = "memory"
    params: dict[str, Any] = field(default_factory=dict)
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    models: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    status: str = "RUNNING"

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keeps them flattened, as MLflow gets them."""
        self.params.update(flatten(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keeps them in order."""
        self.metrics.append((step, dict(metrics)))

    def log_artifact(self, local_path: Path, folder: str = "") -> None:
        """Keeps the file's bytes."""
        name = f"{folder}/{local_path.name}" if folder else local_path.name
        self.artifacts[name] = local_path.read_bytes()

    def log_text(self, text: str, name: str) -> None:
        """Keeps the text encoded."""
        self.artifacts[name] = text.encode()

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Keeps the newest value of each."""
        self.tags.update(tags)

    def log_model(
        self, name: str, uri: str, *, tags: Mapping[str, Any], description: str = ""
    ) -> None:
        """Keeps name, address and tags."""
        self.models.append((name, uri, dict(tags)))

    def finish(self, status: str = "FINISHED") -> str:
        """Keeps the status."""
        self.status = status
        return "in memory"
