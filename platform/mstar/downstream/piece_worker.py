"""What a worker of a sweep does with a piece. Plain code: who calls it, and where, is elsewhere.

The worker lives long: it has imported torch once, and keeps the tasks it saw last with their bags
mapped, which all workers of a node share.
"""

import logging
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mstar.config import to_dict
from mstar.data.task_data import TaskData
from mstar.downstream.bags import PackedBags, load_bags
from mstar.downstream.config import Study, TrialConfig, find_protocol
from mstar.downstream.evaluate import evaluate_external
from mstar.downstream.families import method_options
from mstar.downstream.family_files import conclude_family
from mstar.downstream.family_job import FamilyJob, FamilySources
from mstar.downstream.figures import figure_png, study_figures
from mstar.downstream.model_files import load_fit, save_fit
from mstar.downstream.piece_records import (
    data_facts,
    fit_record,
    fit_uri,
    mean_scores,
    raised_record,
    told,
)
from mstar.downstream.pieces import Answer, Concluded, FitRecord, Piece, Run
from mstar.downstream.population import train_population
from mstar.downstream.predictions import read_predictions, write_predictions
from mstar.downstream.stream import BagSource
from mstar.downstream.study import conclude_study
from mstar.downstream.study_files import study_folder
from mstar.downstream.trainer import FitResult
from mstar.errors import MstarError
from mstar.features.store import FeatureStore
from mstar.storage import objects
from mstar.training.code_version import refuse_other_code

log = logging.getLogger("mstar.sweep")

EXTERNAL = "external"
KEPT_TASKS = 2  # with their bags; more would only hold memory


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What all pieces of a sweep have in common.

    stores: encoder → addresses of its feature stores.
    cache_dir: for packed bags; None: shared memory, or the node's cache.
    figures: draw those of the winner.
    sources, options: of families (`families`): what they are given, and `--option` words.
    seeds: of families; pieces of heads bring their own.
    """

    out: str
    protocol: str
    stores: Mapping[str, tuple[str, ...]]
    device: str = "cpu"
    cache_dir: str | None = None
    figures: bool = True
    sources: FamilySources = field(default_factory=FamilySources)
    options: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)


class PieceWorker:
    """Works on pieces, one after another."""

    def __init__(self, settings: WorkerSettings, fetch: Callable[[str], TaskData]) -> None:
        """Get tasks by their key from `fetch`."""
        self._settings, self._fetch = settings, fetch
        self._protocol = find_protocol(settings.protocol)
        self._kept: OrderedDict[str, tuple[TaskData, PackedBags, BagSource]] = OrderedDict()

    def work(self, piece: Piece) -> Answer:
        """Do a piece; whatever goes wrong is in the answer."""
        fits: list[FitRecord] = []
        try:
            refuse_other_code()
            if piece.work == "family":
                return Answer(concluded=self._family(piece))
            data, bags, source = self._loaded(piece)
            if piece.work == "external":
                return Answer(concluded=self._external(piece, data, bags))
            if piece.work == "fit":
                results = self._train(piece, data, bags, source, fits)
            else:
                results = self._found_again(piece, data, bags, source)
            concluded = None
            if piece.conclude and any(not any(f.failed for f in own) for own in results.values()):
                concluded = self._conclude(piece, data, bags, source, results)
            return Answer(fits=tuple(fits), concluded=concluded)
        except Exception as error:  # a study's trouble must not end the worker
            return Answer(
                fits=tuple(fits),
                failed=told(error),
                traceback=traceback.format_exc(),
                transient=isinstance(error, MstarError) and error.transient,
            )

    def _loaded(self, piece: Piece) -> tuple[TaskData, PackedBags, BagSource]:
        if piece.data_key not in self._kept:
            while len(self._kept) >= KEPT_TASKS:
                self._kept.popitem(last=False)
            data = self._fetch(piece.data_key)
            roots = self._settings.stores[piece.study.encoder]
            stores = [FeatureStore.open(root) for root in roots]
            bags = load_bags(data.samples, stores, cache_root=self._settings.cache_dir)
            self._kept[piece.data_key] = (
                data,
                bags,
                BagSource(bags, self._settings.device, data.genes),
            )
        self._kept.move_to_end(piece.data_key)
        return self._kept[piece.data_key]

    def _train(
        self,
        piece: Piece,
        data: TaskData,
        bags: PackedBags,
        source: BagSource,
        records: list[FitRecord],
    ) -> dict[int, list[FitResult]]:
        """Train the population on each run; records are added as they come.

        Returns:
            Position of the configuration → its fits; those that an error ended are left out.
        """
        results: dict[int, list[FitResult]] = {at: [] for at in range(len(piece.configs))}
        for number, run in enumerate(piece.runs):
            for at, fit in enumerate(self._population(piece.configs, data, bags, source, run)):
                key = piece.keys[at][number]
                if isinstance(fit, FitResult):
                    if piece.save:
                        save_fit(self._fit_uri(piece.study, key), fit, {}, beside=False)
                    results[at].append(fit)
                    records.append(fit_record(piece, at, number, fit))
                else:
                    records.append(raised_record(piece, at, number, fit))
        return {at: own for at, own in results.items() if len(own) == len(piece.runs)}

    def _population(
        self,
        configs: Sequence[TrialConfig],
        data: TaskData,
        bags: PackedBags,
        source: BagSource,
        run: Run,
    ) -> list[FitResult | Exception]:
        """One result a configuration; when the population fails, each is tried by itself."""
        try:
            return list(self._trained(configs, data, bags, source, run))
        except Exception as error:
            if len(configs) == 1:
                return [error]
        return [
            outcome
            for config in configs
            for outcome in self._population([config], data, bags, source, run)
        ]

    def _trained(
        self,
        configs: Sequence[TrialConfig],
        data: TaskData,
        bags: PackedBags,
        source: BagSource,
        run: Run,
    ) -> list[FitResult]:
        return train_population(
            data,
            bags,
            configs,
            fold=run[0],
            seed=run[1],
            protocol=self._protocol,
            device=self._settings.device,
            source=source,
        )

    def _found_again(
        self, piece: Piece, data: TaskData, bags: PackedBags, source: BagSource
    ) -> dict[int, list[FitResult]]:
        """The winner's fits, trained anew where a file is gone."""
        fits = []
        for run, key in zip(piece.runs, piece.keys[0], strict=True):
            uri = self._fit_uri(piece.study, key)
            if objects.exists(uri):
                fits.append(load_fit(uri).fit)
            else:
                fits += self._trained(piece.configs, data, bags, source, run)
        return {0: fits}

    def _conclude(
        self,
        piece: Piece,
        data: TaskData,
        bags: PackedBags,
        source: BagSource,
        fits: Mapping[int, Sequence[FitResult]],
    ) -> Concluded:
        """Choose among fits on all folds and seeds; write predictions, models and figures."""
        seeds = tuple(dict.fromkeys(seed for _, seed in piece.runs))
        result = conclude_study(
            piece.study,
            data,
            bags,
            [own[0].config for own in fits.values()],
            list(fits.values()),
            out=self._settings.out,
            seeds=seeds,
            protocol=self._protocol,
            device=self._settings.device,
            trials=piece.num_trials,
            source=source,
        )
        return Concluded(
            folder=result.folder,
            trial=piece.trials[list(fits)[result.chosen]],
            config=to_dict(result.config),
            mean_score=result.mean_scores[result.chosen],
            predictions=dict(result.predictions),
            models=result.models,
            figures=self._figures(result.folder, result.predictions.get("test")),
            scores=mean_scores(result.predictions),
            facts=data_facts(data, bags),
        )

    def _family(self, piece: Piece) -> Concluded:
        data, settings = self._fetch(piece.data_key), self._settings
        models_of = study_folder(settings.out, piece.models_of) if piece.models_of else ""
        return conclude_family(
            FamilyJob(
                study=piece.study,
                data=data,
                roots=settings.stores[piece.study.encoder],
                folder=study_folder(settings.out, piece.study),
                options=method_options(data.task.kind, piece.study.head, settings.options),
                sources=settings.sources,
                seeds=settings.seeds,
                models_of=models_of,
                device=settings.device,
                cache_dir=settings.cache_dir,
                figures=settings.figures,
            )
        )

    def _external(self, piece: Piece, data: TaskData, bags: PackedBags) -> Concluded:
        assert piece.models_of is not None
        folder = study_folder(self._settings.out, piece.study)
        found = evaluate_external(
            study_folder(self._settings.out, piece.models_of),
            data,
            bags,
            study=piece.study,
            device=self._settings.device,
        )
        uri = objects.join(folder, f"predictions-{EXTERNAL}.parquet")
        write_predictions(uri, found)
        return Concluded(
            folder=folder,
            trial=-1,
            config=dict(found.facts.config),
            mean_score=None,
            predictions={EXTERNAL: uri},
            figures=self._figures(folder, uri),
            scores=mean_scores({EXTERNAL: uri}),
            facts={**data_facts(data, bags), "trained_on": found.facts.trained_on},
        )

    def _figures(self, folder: str, predictions: str | None) -> tuple[str, ...]:
        if predictions is None or not self._settings.figures:
            return ()
        uris = []
        try:
            for name, figure in study_figures(read_predictions(predictions)).items():
                uri = objects.join(folder, "figures", f"{name}.png")
                objects.write_whole(uri, figure_png(figure))
                uris.append(uri)
        except Exception:  # numbers do not wait for a picture
            log.exception("%s: its figures could not be drawn", folder)
        return tuple(uris)

    def _fit_uri(self, study: Study, key: str) -> str:
        return fit_uri(self._settings.out, study, key)
