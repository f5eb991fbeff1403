"""Stage 2 on one rank: everything is prepared, the loop runs, the end is written.

`train` is what every worker of the group runs, and what a run without Ray calls directly.
"""

import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from mstar.errors import InterruptedRunError
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.stage2_finish import finish
from mstar.pretrain.stage2_knn import knn_check
from mstar.pretrain.stage2_prepare import Stage2, prepare
from mstar.pretrain.stage2_resume import (
    write_counts,
)
from mstar.pretrain.stage2_watch import Stage2Watch
from mstar.training.loop import Loop, LoopConfig
from mstar.training.run_log import RunLog
from mstar.training.sessions import Session, TrainState
from mstar.training.step_progress import StepProgress

log = logging.getLogger("mstar.stage2")


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
