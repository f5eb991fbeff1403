"""What one rank of stage 2 holds: shards, student, anchor and engine put together."""

import logging
from dataclasses import dataclass, field, replace

import torch

from mstar.data.shards.batches import Seat
from mstar.data.shards.format import ShardIndex
from mstar.losses.self_taught import TargetStatistics
from mstar.models.ema import Ema
from mstar.models.student import Student, build_student
from mstar.pretrain.shard_pieces import RayReaders
from mstar.pretrain.shard_stream import StreamConfig
from mstar.pretrain.stage2_batches import StepBatches, probe_images
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.stage2_init import initialise
from mstar.pretrain.stage2_knn import LabelledPatches, read_labelled
from mstar.pretrain.stage2_resume import (
    Inputs,
    newest_checkpoint,
    open_inputs,
    read_counts,
    run_identity,
    start_state,
)
from mstar.pretrain.stage2_step import Stage2Steps, build_optimizer
from mstar.pretrain.stage2_watch import Probe
from mstar.training.cluster import cluster_shape
from mstar.training.engines import Engine, make_engine
from mstar.training.run_log import RunLog
from mstar.training.sessions import LocalSession, Session, TrainState
from mstar.training.tracker import NullTracker, Tracker
from mstar.training.tracking import start_tracking

log = logging.getLogger("mstar.stage2")


@dataclass(slots=True, kw_only=True)
class Stage2:
    """Everything that one rank holds.

    probe and patches: on rank 0 only.
    history: numbers of every logged step so far, those of former attempts included.
    bad_rows: rows that could not be trained so far, of all ranks and attempts.
    """

    config: Stage2Config
    session: Session
    inputs: Inputs
    batches: StepBatches
    engine: Engine
    ema: Ema
    steps: Stage2Steps
    state: TrainState
    probe: Probe | None
    patches: LabelledPatches | None
    run_log: RunLog | None
    tracker: Tracker = field(default_factory=NullTracker)
    history: list[dict[str, float]] = field(default_factory=list)
    bad_rows: int = 0

    @property
    def student(self) -> Student:
        """The model being trained."""
        assert isinstance(self.engine.module, Student)
        return self.engine.module


def prepare(session: Session, config: Stage2Config, run_log: RunLog | None) -> Stage2:
    """Open the shards, build student and anchor, and take up the newest checkpoint."""
    inputs = open_inputs(config)
    index, identity = inputs.index, run_identity(config, inputs)
    student = build_student(
        index.encoder.name,
        inputs.weights,
        target_dim=index.target_dim,
        seed=config.seed,
        config=config.student,
    )
    if inputs.start is not None:
        standard = statistics_of(index, torch.device("cpu")) if config.loss.standardise else None
        initialise(student, inputs.start.folder, standard)
    student = student.to(session.device)
    first = session.rank == 0
    probe = take_probe(config, index, student) if first and config.watch_every_steps else None
    ema = Ema(student)  # before an engine makes the parameters views of one large buffer
    with newest_checkpoint(session, config.out, identity) as folder:
        state = start_state(folder, config, identity, session)
        engine = make_engine(
            student,
            build_optimizer(student, config),
            config.engine,
            grad_clip=config.optimizer.grad_clip,
            resume=folder,
        )
        if folder is not None:
            ema.load(folder)
        bad_rows = read_counts(folder)
    batches = open_batches(config, index, session)
    statistics = statistics_of(index, session.device) if config.loss.standardise else None
    run = Stage2(
        config=config,
        session=session,
        inputs=inputs,
        batches=batches,
        engine=engine,
        ema=ema,
        steps=Stage2Steps(
            engine=engine,
            ema=ema,
            config=config,
            num_steps=total_steps(config, batches.per_epoch),
            statistics=statistics,
        ),
        state=state,
        probe=probe,
        patches=read_labelled(config.knn_labels) if first and config.knn_labels else None,
        run_log=run_log,
        history=run_log.history(state.step) if run_log is not None else [],
        bad_rows=bad_rows,
    )
    if config.tracking and first:
        run.tracker = start_tracking("stage2", config, out=config.out, run_id=state.run_id or None)
        run.state = replace(state, run_id=run.tracker.run_id)
    return run


def take_probe(config: Stage2Config, index: ShardIndex, student: Student) -> Probe:
    """Fixed patches with the initial encoder's features."""
    images = probe_images(config.shards, index, config.probe_patches)
    return Probe.take(
        student, images, micro_batch=config.micro_batch, precision=config.engine.precision
    )


def open_batches(config: Stage2Config, index: ShardIndex, session: Session) -> StepBatches:
    """This rank's batches; Ray Data reads where Ray Train trains, threads do elsewhere."""
    stream = StreamConfig(
        via="ray" if reads_through_ray(config, session) else "threads",
        decode_threads=config.decode_threads,
        ahead_bytes=config.read_ahead_mb * 1_000_000,
        patience_s=config.patience_s,
        max_bad_share=bad_share(config.max_bad_rows, index.num_rows),
        augmentation=config.augment,
    )
    seat = Seat(rank=session.rank, world_size=session.world_size)
    return StepBatches(config.shards, index, config.order, seat, stream)


def reads_through_ray(config: Stage2Config, session: Session) -> bool:
    """Whether the cluster has CPUs for reading tasks, besides those that the workers reserve.

    Where it has not (a node may be lost since the run began) the tasks would wait for ever, and the
    workers for them without a word; their own threads read the same rows.
    """
    if isinstance(session, LocalSession):
        return False
    cpus, readers = cluster_shape().num_cpus, RayReaders()
    left = cpus - session.world_size * config.group.cpus_per_worker
    if left < readers.task_cpus and session.rank == 0:
        log.warning(
            "the workers reserve %g of the cluster's %g CPUs: they read the shards themselves. "
            "Lower --cpus-per-worker to have other CPUs do it",
            cpus - left,
            cpus,
        )
    return left >= readers.task_cpus


def bad_share(spec: str, num_rows: int) -> float:
    """`0.1%` or a count as a share of all rows."""
    if spec.endswith("%"):
        return float(spec[:-1]) / 100
    return min(1.0, (int(spec) + 0.5) / max(1, num_rows))  # rounded down again where it is used


def total_steps(config: Stage2Config, per_epoch: int) -> int:
    """Optimiser steps of the run."""
    every = config.epochs * per_epoch
    return min(every, config.max_steps) if config.max_steps else every


def statistics_of(index: ShardIndex, device: torch.device) -> TargetStatistics:
    """Mean and deviation of the targets, as the shards record them."""
    return TargetStatistics(
        mean=torch.tensor(index.target_mean, dtype=torch.float32, device=device),
        std=torch.tensor(index.target_std, dtype=torch.float32, device=device),
    )
