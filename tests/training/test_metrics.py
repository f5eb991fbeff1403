"""Progress as Ray metrics: nothing without Ray, the right gauges with it, never an error."""

import subprocess
import sys
from typing import Any

import pytest

from mstar.training import metrics


class FakeGauge:
    """Stands for Ray's gauge, and keeps what was set."""

    made: dict[str, "FakeGauge"]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        assert tag_keys == ("job_kind",)
        assert name not in FakeGauge.made, "made twice"
        FakeGauge.made[name] = self
        self.seen: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.seen.append((value, tags))


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeGauge]:
    """A process that is part of a cluster, with gauges that can be looked at."""
    import ray.util.metrics

    FakeGauge.made = {}
    monkeypatch.setattr(metrics, "_ray_runs", lambda: True)
    monkeypatch.setattr(metrics, "_made", {})
    monkeypatch.setattr(metrics, "_complained", set())
    monkeypatch.setattr(ray.util.metrics, "Gauge", FakeGauge)
    return FakeGauge.made


def test_known_names_are_set_under_the_job(gauges: dict[str, FakeGauge]) -> None:
    metrics.publish("embed", {"patches_per_s": 12.0, "slides_failed": 1, "unknown": 3.0})
    metrics.publish("stage2", {"patches_per_s": 7.0})
    assert gauges.keys() == {"mstar_patches_per_s", "mstar_slides_failed"}
    assert gauges["mstar_patches_per_s"].seen == [
        (12.0, {"job_kind": "embed"}),
        (7.0, {"job_kind": "stage2"}),
    ]


def test_what_is_no_number_is_left_out(gauges: dict[str, FakeGauge]) -> None:
    metrics.publish("stage2", {"loss": float("nan"), "epoch": float("inf")})
    assert gauges == {}


def test_an_exporter_that_fails_warns_once(
    gauges: dict[str, FakeGauge], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Any, value: float, tags: dict[str, str]) -> None:
        raise RuntimeError("no agent")

    monkeypatch.setattr(FakeGauge, "set", refuse)
    for _ in range(3):
        metrics.publish("embed", {"patches_per_s": 1.0})
    assert len([r for r in caplog.records if "no agent" in r.getMessage()]) == 1


def test_without_ray_nothing_is_imported() -> None:
    code = (
        "import sys; from mstar.training import metrics; metrics.publish('embed', {'loss': 1.0});"
    )
    code += "sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
