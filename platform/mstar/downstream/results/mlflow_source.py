"""Predictions kept in MLflow: artifacts of the children of a sweep's run.

A sweep is a parent run, its children are studies with their prediction files, grandchildren are
trials and hold none. So only children are looked into.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mstar.downstream.results.sources import (
    LEFT_OUT,
    Found,
    LeftOut,
    Source,
    is_reported,
    only_ones,
    read_left_out,
    read_source,
)
from mstar.errors import ConfigError

_PARENT = "mlflow.parentRunId"
_OUR_ID = "mstar.run_id"
_PAGE = 500


def read_mlflow(tracking_uri: str, experiment: str, run: str = "") -> Found:
    """The predictions of a sweep, or of all sweeps of an experiment.

    Args:
        tracking_uri: of the MLflow server or store.
        experiment: its name.
        run: id (MLflow's or ours) or name of a sweep's parent run; empty takes all.

    Raises:
        ConfigError: there is no such experiment, run or prediction file.
    """
    from mlflow.tracking import MlflowClient  # slow to import, and most read folders

    client = MlflowClient(tracking_uri=tracking_uri)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise ConfigError(
            f"{tracking_uri}: expected an experiment {experiment!r}, got none of that name. "
            "`mlflow ui` lists them."
        )
    runs = list(_runs(client, known.experiment_id))
    parents = [r for r in runs if _PARENT not in r.data.tags and _is_named(r, run)]
    if not parents:
        raise ConfigError(
            f"{tracking_uri}: expected a sweep {run!r} in experiment {experiment!r}, got none. "
            "Give the id or the name of its parent run."
        )
    ids = {parent.info.run_id for parent in parents}
    children = [r for r in runs if r.data.tags.get(_PARENT) in ids]
    sources: list[Source] = []
    left_out: list[LeftOut] = []
    with tempfile.TemporaryDirectory() as folder:
        for item in (*parents, *children):
            for path in _artifacts(client, item.info.run_id):
                name = path.rsplit("/", 1)[-1]
                if name != LEFT_OUT and not is_reported(path):
                    continue
                place = Path(folder, item.info.run_id)
                place.mkdir(exist_ok=True)
                local = client.download_artifacts(item.info.run_id, path, str(place))
                if name == LEFT_OUT:
                    left_out += read_left_out(local)
                else:
                    uri = f"runs:/{item.info.run_id}/{path}"
                    sources.append(Source(uri=uri, predictions=read_source(local).predictions))
    if not sources:
        raise ConfigError(
            f"{tracking_uri}: expected predictions among the artifacts of {len(children)} studies "
            f"in experiment {experiment!r}, got none. Give --runs if the sweep's folder is there."
        )
    return Found(sources=only_ones(sources), left_out=tuple(dict.fromkeys(left_out)))


def _runs(client: Any, experiment_id: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _is_named(run: Any, wanted: str) -> bool:
    names = (run.info.run_id, run.info.run_name, run.data.tags.get(_OUR_ID))
    return not wanted or wanted in names


def _artifacts(client: Any, run_id: str, folder: str | None = None) -> Iterator[str]:
    """Files at the top and one folder below it: models may have many, deeper."""
    for item in client.list_artifacts(run_id, folder):
        if not item.is_dir:
            yield item.path
        elif folder is None:
            yield from _artifacts(client, run_id, item.path)
