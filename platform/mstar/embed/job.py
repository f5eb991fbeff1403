"""The embedding job: slides in, a feature store out.

    config ─▶ weights found and hashed ─▶ store opened ─▶ Ray ─▶ rounds of bundles ─▶ summary

Run it again and it does only what is missing; kill it anywhere and nothing half-written is seen.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from mstar.embed.assembly import EmbedPlan, make_local_source, store_identity, worker_factory
from mstar.embed.config import EmbedConfig
from mstar.embed.live import Live
from mstar.embed.overviews import log_overviews
from mstar.embed.pipeline import PoolShape, run_bundles
from mstar.embed.readers import fetched_by, start_readers
from mstar.embed.results import Tally
from mstar.embed.running import collect_leftovers, job_run, print_dry_run
from mstar.features.store import FeatureStore
from mstar.models.encoder_table import find_encoder
from mstar.models.patch_encoders import prepare_weights
from mstar.storage.objects import join
from mstar.training.cluster import ClusterShape, ray_session

GPU_BATCH, CPU_BATCH = 256, 32
GPU_READER_THREADS = 4


def run(config: EmbedConfig) -> int:
    """Run the job; returns its exit code (`mstar.training.exit_codes`)."""
    if config.run.dry_run:
        return print_dry_run(config, FeatureStore)
    spec = find_encoder(config.encoder)
    weights = prepare_weights(config.encoder, config.weights)
    with (
        ray_session(config.run.address) as cluster,
        job_run("embed", config, num_nodes=cluster.num_nodes) as job,
    ):
        plan = settle(config, run_id=job.run_id, weights=weights, cluster=cluster)
        store = FeatureStore.open_or_create(config.out, store_identity(plan, spec))
        collect_leftovers(config.out)
        store.collect_stale(is_done=store.has, grid_of=lambda slide_id: None)
        job.tracker.set_tags(
            {
                "encoder": spec.name,
                "weights_sha256": weights.sha256,
                "licence": spec.licence,
                "store_fingerprint": store.fingerprint,
            }
        )
        job.tracker.log_params(_settled(plan))
        code = job.go(
            target_patches=plan.chunk_patches,
            done_ids=store.done_ids,
            run_plan=partial(_run_plan, plan, cluster),
        )
        log_overviews(job.tracker, join(config.out, "_grids"))
        return code


def settle(config: EmbedConfig, *, run_id: str, weights: Any, cluster: ClusterShape) -> EmbedPlan:
    """Decide what the config leaves open, from what the cluster has."""
    on_gpu = config.device == "cuda" or (config.device == "auto" and cluster.num_gpus >= 1)
    cpus = cpus_per_worker(config, cluster)
    threads = config.run.torch_threads or max(1, round(_cores(cpus, cluster)))
    default_readers = max(GPU_READER_THREADS, round(cpus)) if on_gpu else threads
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if on_gpu else "float32"
    return EmbedPlan(
        config=config,
        run_id=run_id,
        weights=weights,
        device="cuda" if on_gpu else "cpu",
        precision=precision,
        batch_size=config.batch_size or (GPU_BATCH if on_gpu else CPU_BATCH),
        torch_threads=threads,
        reader_threads=config.run.reader_threads or default_readers,
    )


def cpus_per_worker(config: EmbedConfig, cluster: ClusterShape) -> float:
    """A node's CPUs, less one for Ray's read tasks, shared by its workers."""
    if config.run.cpus_per_worker:
        return config.run.cpus_per_worker
    per_node = max(1.0, num_workers(config, cluster) / max(1, cluster.num_nodes))
    return max(1.0, (cluster.smallest_node_cpus - 1) // per_node)


def num_workers(config: EmbedConfig, cluster: ClusterShape) -> int:
    """One worker a GPU; without GPUs one a node."""
    if config.run.workers:
        return config.run.workers
    gpus = 0 if config.device == "cpu" else int(cluster.num_gpus)
    return max(1, gpus or cluster.num_nodes)


def _cores(cpus: float, cluster: ClusterShape) -> float:
    """The cores a lone worker may keep busy: the one left to Ray's tasks is idle nearly always."""
    alone = cpus >= cluster.smallest_node_cpus - 1
    return min(cluster.smallest_node_cpus, os.cpu_count() or 1) if alone else cpus


def _run_plan(plan: EmbedPlan, cluster: ClusterShape, plan_uri: str, live: Live) -> Iterator[Tally]:
    config = plan.config
    shape = PoolShape(
        workers=num_workers(config, cluster),
        num_cpus=cpus_per_worker(config, cluster),
        num_gpus=1.0 if plan.device == "cuda" else 0.0,
    )
    readers: list[Any] = []
    if config.run.reader_workers:
        readers = start_readers(
            partial(make_local_source, plan),
            count=config.run.reader_workers,
            num_cpus=1.0,
            threads=plan.reader_threads,
        )
    yield from run_bundles(plan_uri, worker_factory(plan, readers), shape, live)
    if readers:
        yield Tally(bytes_fetched=fetched_by(readers))


def _settled(plan: EmbedPlan) -> dict[str, Any]:
    names = ("device", "precision", "batch_size", "torch_threads", "reader_threads")
    return {"settled": {name: getattr(plan, name) for name in names}}
