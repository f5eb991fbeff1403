"""Progress as Ray metrics, so that Prometheus and Grafana see it beside the cluster's own figures.

A job publishes what it also logs to its tracker. On a Ray cluster every node serves the numbers
as `ray_mstar_<name>{job_kind="…"}` (`cluster/services/grafana/mstar.json` draws them); without Ray
nothing happens, and Ray is not imported.

Gauges only: a job that was killed and run again states its totals anew, and a counter would count
them twice.
"""

import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

PREFIX = "mstar_"
GAUGES = {
    "patches_per_s": "Patches a second, over the last minute or step",
    "patches_done": "Patches done by this run",
    "slides_done": "Slides done by this run",
    "slides_failed": "Slides that failed in this run",
    "cases_failed": "Cases left out by this run",
    "input_wait": "Share of a training step spent waiting for input, 0-1",
    "input_wait_s": "Seconds that workers waited for pixels or features",
    "bad_rows": "Rows of patch shards that could not be used",
    "step_s": "Seconds of a training step",
    "loss": "Training loss",
    "epoch": "Epochs done, with fraction",
    "studies": "Studies of the sweep",
    "studies_done": "Studies of the sweep that ended",
    "studies_failed": "Studies of the sweep that failed",
    "trials": "Trials that ended",
    "trials_per_min": "Trials a minute",
}
"""What is published, a closed table: names made up at run time would fill Prometheus' memory."""

log = logging.getLogger("mstar.metrics")
_made: dict[str, Any] = {}
_complained: set[str] = set()


def publish(job: str, numbers: Mapping[str, float]) -> None:
    """Sets the gauges that `numbers` has values for; other names are passed over.

    job: names the job, for example `embed`; becomes the label `job_kind`.
    Never raises: a number that nobody can see must not end a job of days.
    """
    if not _ray_runs():
        return
    for name in GAUGES.keys() & numbers.keys():
        value = float(numbers[name])
        if math.isfinite(value):
            _set(name, value, job)


def _ray_runs() -> bool:
    """Whether this process is part of a Ray cluster; Ray is not imported to find out."""
    ray = sys.modules.get("ray")
    return bool(ray is not None and getattr(ray, "is_initialized", bool)())


def _set(name: str, value: float, job: str) -> None:
    try:
        _gauge(name).set(value, tags={"job_kind": job})
    except Exception as error:  # whatever Ray's exporter has to complain about
        if name not in _complained:
            _complained.add(name)
            log.warning("metrics: %s is not exported: %s", name, error)


def _gauge(name: str) -> Any:
    """The gauge of a name, made once a process."""
    if name not in _made:
        from ray.util.metrics import Gauge

        _made[name] = Gauge(PREFIX + name, GAUGES[name], tag_keys=("job_kind",))
    return _made[name]
