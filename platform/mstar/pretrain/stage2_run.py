"""Stage 2 on one rank: shards, student, anchor and engine put together, then the loop.

`train` is what every worker of the group runs, and what a run without Ray calls directly.
"""

import json
import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mstar.config import to_dict
from mstar.data.shards.batches import Seat
from mstar.data.shards.format import ShardIndex
from mstar.errors import InterruptedRunError
from mstar.losses.self_taught import TargetStatistics
from mstar.models.ema import Ema
from mstar.models.student import Student, build_student
from mstar.pretrain.shard_stream import StreamConfig
from mstar.pretrain.stage1_log import RunLog
from mstar.pretrain.stage2_batches import StepBatches, probe_images
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.stage2_export import ExportFacts, export, register
from mstar.pretrain.stage2_figures import curves, neighbours
from mstar.pretrain.stage2_knn import LabelledPatches, knn_check, read_labelled
from mstar.pretrain.stage2_resume import (
    Inputs,
    newest_checkpoint,
    open_inputs,
    read_counts,
    run_identity,
    start_state,
    write_counts,
)
from mstar.pretrain.stage2_step import Stage2Steps, build_optimizer
from mstar.pretrain.stage2_watch import Probe, Stage2Watch, encode
from mstar.storage import objects
from mstar.training.engines import Engine, make_engine
from mstar.training.loop import Loop, LoopConfig
from mstar.training.sessions import LocalSession, Session, TrainState
from mstar.training.step_progress import StepProgress
from mstar.training.tracking import NullTracker, Tracker, start_tracking

log = logging.getLogger("mstar.stage2")

FACTS_FILE = "stage2.json"
# of the machine or the attempt: equal runs leave equal files
NOT_A_RESULT = ("step", "pid", "step_s", "patches_per_s", "input_wait", "gpu_gb")


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


def train(session: Session, config: Stage2Config) -> None:
    """Train to the end on this rank, from the newest checkpoint where there is one."""
    with ExitStack() as stack:
        run_log = RunLog(config.out) if session.rank == 0 else None
        if run_log is not None:
            stack.enter_context(run_log.with_warnings())
        run = prepare(session, config, run_log)
        try:
            with run.batches:
                ended = go(run)
            if session.rank == 0:
                finish(run, ended)
        except (InterruptedRunError, KeyboardInterrupt):
            run.tracker.finish("KILLED")
            raise
        except Exception:
            run.tracker.finish("FAILED")
            raise


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
    ).to(session.device)
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
    alone = isinstance(session, LocalSession)
    stream = StreamConfig(
        via="threads" if alone else "ray",
        max_bad_share=bad_share(config.max_bad_rows, index.num_rows),
        augmentation=config.augment,
    )
    seat = Seat(rank=session.rank, world_size=session.world_size)
    return StepBatches(config.shards, index, config.order, seat, stream)


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


def go(run: Stage2) -> TrainState:
    """The loop, from the run's state to the end."""
    config, session = run.config, run.session
    watch = Stage2Watch()
    progress = None
    if run.run_log is not None:
        run.run_log.say(header(run))
        progress = StepProgress(
            "stage2",
            num_steps=run.steps.num_steps,
            steps_done=run.state.step,
            say=run.run_log.say,
            unit="patches",
        )

    def on_log(step: int, metrics: Mapping[str, float]) -> None:
        record(run, watch, step, metrics)
        if progress is not None and "loss" in metrics:
            progress.update(step, num_cases=int(metrics["rows"]), loss=metrics["loss"])

    if session.rank == 0 and run.state.step == 0:
        found = look(run, 0)
        on_log(0, found)
        run.tracker.log_metrics(found, 0)
    return Loop(
        config=LoopConfig(
            num_steps=run.steps.num_steps,
            validate_every=look_every(config, run.steps.num_steps),
            checkpoint_every=config.checkpoint_every_steps,
            log_every=config.log_every_steps,
        ),
        session=session,
        state=run.state,
        step=lambda step: one_step(run, step),
        validate=lambda step: (look(run, step), None),
        write=lambda folder: write_checkpoint(run, folder),
        on_best=lambda step, metrics: None,
        tracker=run.tracker,
        on_log=on_log,
    ).run()


def look_every(config: Stage2Config, num_steps: int) -> int:
    """Steps between looks at probe or k-NN check, on all ranks alike; 0 for never."""
    often = math.gcd(config.watch_every_steps, config.knn_every_steps)
    return often or (num_steps if config.knn_labels else 0)


def header(run: Stage2) -> str:
    """What is about to be trained, in a line."""
    index, config = run.inputs.index, run.config
    return (
        f"stage2: {index.encoder.name} · {index.num_rows:,} patches of "
        f"{index.counts.num_slides:,} slides · {run.steps.num_steps:,} steps of "
        f"{config.batch_patches:,} · {run.session.world_size} rank(s) on "
        f"{run.session.device.type}, {config.engine.engine} {config.engine.precision}"
    )


def one_step(run: Stage2, step: int) -> Mapping[str, float]:
    """One optimiser step, and how fast it was."""
    began_s, waited_s = time.perf_counter(), run.batches.waited_s
    batch = run.batches.get(step)
    found = run.steps.take(step, batch)
    took_s = time.perf_counter() - began_s
    run.bad_rows += run.batches.rows_of(step) - int(found["rows"])
    speed = {
        "patches_per_s": found["rows"] / took_s,
        "input_wait": (run.batches.waited_s - waited_s) / took_s,
        "epoch": step / run.batches.per_epoch,
        "bad_rows": float(run.bad_rows),
    }
    if run.session.device.type == "cuda":
        speed["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return {**found, **speed}


def look(run: Stage2, step: int) -> dict[str, float]:
    """The numbers of probe and k-NN check that are due; on rank 0, empty elsewhere."""
    found: dict[str, float] = {}
    config = run.config
    settings = {"micro_batch": config.micro_batch, "precision": config.engine.precision}
    if run.probe is not None and is_due(run, step, config.watch_every_steps):
        found |= run.probe.measure(run.student, run.ema, **settings)  # type: ignore[arg-type]
    if run.patches is not None and is_due(run, step, config.knn_every_steps):
        found |= knn_check(
            run.student,
            run.patches,
            neighbours=config.knn_neighbours,
            **settings,  # type: ignore[arg-type]
        )
    return found


def is_due(run: Stage2, step: int, every: int) -> bool:
    """At the start, at the end, and at every multiple."""
    return step in (0, run.steps.num_steps) or bool(every and step % every == 0)


def record(run: Stage2, watch: Stage2Watch, step: int, metrics: Mapping[str, float]) -> None:
    """A line in the log of steps, and a warning for every failure signature seen."""
    assert run.run_log is not None
    if not metrics:
        return
    run.history.append({"step": step, **metrics})
    run.run_log.append(step, metrics)
    for text in watch.look(step, metrics):
        log.warning("%s", text)
        run.tracker.set_tags({"mstar.warning": text})


def write_checkpoint(run: Stage2, folder: Path) -> None:
    """This rank's files of a checkpoint; the anchor is rank 0's."""
    run.engine.save(folder)
    run.ema.save(folder)
    if run.run_log is not None:
        write_counts(folder, bad_rows=run.bad_rows)
        run.run_log.publish()


def finish(run: Stage2, state: TrainState) -> None:
    """Export, pictures, model registry, the last word to the tracker."""
    assert run.run_log is not None
    config = run.config
    every = {name: value for row in run.history for name, value in row.items()}
    last = {name: value for name, value in every.items() if name not in NOT_A_RESULT}
    facts = export_facts(run, state, last)
    averaged = run.ema.module if config.branch == "ema" else None
    hashes = export(
        config.out, run.student, facts, encoder=averaged, statistics=run.steps.statistics
    )
    curves(run.history, run.run_log.folder / "curves.png")
    run.tracker.log_artifact(run.run_log.folder / "curves.png")
    if run.probe is not None:
        settings = {"micro_batch": config.micro_batch, "precision": config.engine.precision}
        after = encode(run.student, run.probe.images, **settings)  # type: ignore[arg-type]
        path = run.run_log.folder / "neighbours.png"
        neighbours(run.probe.images, run.probe.initial, after, path)
        run.tracker.log_artifact(path)
        if not objects.is_local(config.out):
            objects.put_file(path, objects.join(config.out, path.name))
    register(run.tracker, config.out, config.model_name, facts, hashes)
    said = {
        "fingerprint": state.fingerprint,
        "complete": True,
        "steps_done": state.step,
        "steps": run.steps.num_steps,
        "weights_sha256": hashes,
        "metrics": last,
        "bad_rows": run.bad_rows,
        "facts": to_dict(facts),
    }
    run.run_log.say(f"stage2: {run.tracker.finish('FINISHED')}")
    run.run_log.publish()
    text = json.dumps(said, indent=1, sort_keys=True)
    objects.write_whole(objects.join(config.out, FACTS_FILE), text.encode())


def export_facts(run: Stage2, state: TrainState, last: Mapping[str, float]) -> ExportFacts:
    """What the export says of itself."""
    index, weights = run.inputs.index, run.inputs.weights
    counts = index.counts
    return ExportFacts(
        encoder=index.encoder.name,
        initial_uri=weights.uri,
        initial_sha256=weights.sha256,
        step=state.step,
        branch=run.config.branch,
        counts={
            "patches": index.num_rows,
            "slides": counts.num_slides,
            "cases": counts.num_cases,
        },
        config=to_dict(run.config),
        metrics=last,
        provenance={"shards_fingerprint": index.fingerprint, "targets": dict(index.config)},
        generated=index.config.get("data_source") == "generated",
    )
