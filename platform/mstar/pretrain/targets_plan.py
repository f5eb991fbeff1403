"""From a config to workers: what names the targets, and what is shipped to an actor."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from mstar.config import fingerprint
from mstar.data.bags import BagConfig, BagReader
from mstar.data.target_files import TargetProvenance
from mstar.data.targets import TargetStore
from mstar.errors import FeatureError
from mstar.pretrain.targets_cases import ChosenCases, FeatureKind, TargetCase
from mstar.pretrain.targets_config import TargetsConfig
from mstar.pretrain.targets_tally import TargetsTally
from mstar.pretrain.targets_teacher import Teacher, TeacherSpec
from mstar.pretrain.targets_worker import TargetsWorker
from mstar.storage.cache import SlideCache, default_cache_dir
from mstar.training.actor_pool import PoolShape
from mstar.training.cluster import ClusterShape
from mstar.training.code_version import refuse_other_code

GPU_WORKER_CPUS = 2.0  # one launches, one reads

_CASE = pa.struct(
    [
        ("case_id", pa.string()),
        ("slides", pa.list_(pa.string())),
        ("num_patches", pa.int64()),
        ("inputs", pa.string()),
    ]
)
PLAN_SCHEMA = pa.schema([("cases", pa.list_(_CASE))])


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetsPlan:
    """A config with everything settled that it leaves open; travels to every worker.

    identity: whatever decides a target; names the store.
    """

    config: TargetsConfig
    run_id: str
    teacher: TeacherSpec
    features: FeatureKind
    features_fingerprint: str
    identity: dict[str, Any]


def identity_of(
    config: TargetsConfig,
    teacher: TeacherSpec,
    chosen: ChosenCases,
    kind: FeatureKind,
    features_fingerprint: str,
) -> dict[str, Any]:
    """What a store of targets holds: whatever changes a target, nothing that does not."""
    return {
        "aggregator": {"sha256": teacher.sha256, **teacher.config},
        "target_dim": teacher.dim,
        "features": {
            "fingerprint": features_fingerprint,
            "encoder": kind.provenance.encoder,
            "weights_sha256": kind.provenance.weights_sha256,
        },
        "coverage": config.coverage,
        "window": teacher.window,
        "padded_to": teacher.padded_to,
        "seed": config.seed,
        "precision": teacher.precision,
        "device": teacher.device,
        "threads": teacher.threads if teacher.device == "cpu" else 0,
        "cases": {"selected": config.cases, "splits": chosen.splits, "digest": chosen.digest},
        "data_source": chosen.data_source,
    }


def check_features(
    config: TargetsConfig, teacher: TeacherSpec, kind: FeatureKind, features_fingerprint: str
) -> None:
    """Refuse features that the aggregator was not trained on.

    Raises:
        FeatureError: of another length, or of another configuration without leave.
    """
    if kind.dim != teacher.input_dim:
        raise FeatureError(
            f"{config.features}: expected features of {teacher.input_dim} numbers, as the "
            f"aggregator {teacher.uri} was trained on, got {kind.dim} of "
            f"{kind.provenance.encoder}. Give the store that its stage 1 read."
        )
    if teacher.features == features_fingerprint or config.allow_other_features:
        return
    trained = f"were trained on {teacher.features}" if teacher.features else "do not say on which"
    raise FeatureError(
        f"{config.features}: expected the features that stage 1 was trained on; these are "
        f"{features_fingerprint} ({kind.provenance.encoder}), the weights {teacher.uri} {trained}. "
        "Give the store that its stage 1 read, or accept other ones with --allow-other-features."
    )


def make_worker(plan: TargetsPlan) -> TargetsWorker:
    """Build a worker in the process that will run it."""
    config, run = plan.config, plan.config.run
    cache_dir, cache_bytes = run.cache_dir or default_cache_dir(), int(run.cache_gb * 1e9)
    bags = BagConfig(size=plan.teacher.window, fill="masked", seed=config.seed)
    return TargetsWorker(
        teacher=Teacher(plan.teacher),
        reader=BagReader(config.features, bags, cache_dir=cache_dir, cache_bytes=cache_bytes),
        cache=SlideCache(cache_dir, max_bytes=cache_bytes),
        store=TargetStore.open_or_create(config.out, plan.identity),
        provenance=provenance(plan),
        run_id=plan.run_id,
        lease_s=run.lease_s,
    )


def provenance(plan: TargetsPlan) -> TargetProvenance:
    """What every target file of the run says about itself."""
    teacher, made = plan.teacher, plan.features.provenance
    return TargetProvenance(
        fingerprint=fingerprint(plan.identity),
        aggregator_sha256=teacher.sha256,
        mode=teacher.config["mode"],
        attention=teacher.config["attention"],
        precision=teacher.precision,
        features_fingerprint=plan.features_fingerprint,
        encoder=made.encoder,
        weights_sha256=made.weights_sha256,
        coverage=plan.config.coverage,
        window=teacher.window,
        seed=plan.config.seed,
    )


def bundles(cases: Iterable[TargetCase], *, target_patches: int) -> Iterator[list[TargetCase]]:
    """Consecutive cases, closed as soon as they are worth `target_patches`."""
    bundle: list[TargetCase] = []
    for case in cases:
        bundle.append(case)
        if sum(one.num_patches for one in bundle) >= target_patches:
            yield bundle
            bundle = []
    if bundle:
        yield bundle


def to_table(planned: Iterable[Sequence[TargetCase]]) -> pa.Table:
    """Bundles as rows that Ray Data moves."""
    rows = [{"cases": [asdict(case) for case in bundle]} for bundle in planned]
    return pa.Table.from_pylist(rows, PLAN_SCHEMA)


class TargetsActor:
    """One worker in one actor."""

    def __init__(self, plan: TargetsPlan) -> None:
        """Build the worker where it will run."""
        refuse_other_code()
        self._worker = make_worker(plan)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Do the bundles of a block; one tally a bundle."""
        tallies = [self._worker.run(_from_row(row)) for row in rows.to_pylist()]
        return pa.Table.from_pylist([asdict(tally) for tally in tallies])


def _from_row(row: dict[str, Any]) -> list[TargetCase]:
    return [TargetCase(**{**one, "slides": tuple(one["slides"])}) for one in row["cases"]]


def tally_from(row: dict[str, Any]) -> TargetsTally:
    """The tally of one answer."""
    return TargetsTally(**row)


def pool_shape(plan: TargetsPlan, cluster: ClusterShape) -> PoolShape:
    """One worker a GPU; without GPUs as many as the CPUs allow, one a node being left to Ray."""
    run, on_gpu = plan.config.run, plan.teacher.device == "cuda"
    free = max(1.0, cluster.smallest_node_cpus - 1)
    cpus = run.cpus_per_worker
    if not cpus:
        per_node = max(1.0, cluster.num_gpus / max(1, cluster.num_nodes))
        most = min(GPU_WORKER_CPUS, free // per_node)
        cpus = max(1.0, most) if on_gpu else min(float(plan.teacher.threads), free)
    per_cpus = max(1, int(free // cpus)) * max(1, cluster.num_nodes)
    workers = run.workers or (max(1, int(cluster.num_gpus)) if on_gpu else per_cpus)
    return PoolShape(workers=workers, num_cpus=cpus, num_gpus=1.0 if on_gpu else 0.0)
