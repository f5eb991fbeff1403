"""Stage 1 on one rank: inputs, model and engine put together, then the loop.

`train` is what every worker of the group runs, and what a run without Ray calls directly.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from jaxtyping import Int64

from mstar.errors import FeatureError, InterruptedRunError, TrainingError
from mstar.losses.cases import MODALITIES, CaseEmbeddings
from mstar.losses.stage1 import stage1_loss
from mstar.models.multimodal import LARGEST_SCALE, MultimodalModel
from mstar.pretrain.batch_plan import share_of
from mstar.pretrain.cached_step import Chunk, cached_step, loss_metrics
from mstar.pretrain.retrieval import uniformity
from mstar.pretrain.stage1_batches import Ahead, CaseInputs, chunks_of, spread
from mstar.pretrain.stage1_cases import BadInput, Stage1Cases, choose_cases
from mstar.pretrain.stage1_config import Stage1Config
from mstar.pretrain.stage1_export import Exporter
from mstar.pretrain.stage1_facts import facts_of, input_digests
from mstar.pretrain.stage1_log import RunLog
from mstar.pretrain.stage1_model import build_model, build_optimizer
from mstar.pretrain.stage1_plan import StepPlan
from mstar.pretrain.stage1_resume import (
    newest_checkpoint,
    read_found_bad,
    start_state,
    write_found_bad,
)
from mstar.pretrain.stage1_sources import feature_dim, fitted_bins, open_inputs
from mstar.pretrain.stage1_validate import (
    Validation,
    class_vectors,
    embed_cases,
    measure,
    near_duplicates,
)
from mstar.pretrain.stage1_watch import Stage1Watch
from mstar.training.engines import Engine, make_engine, world_size
from mstar.training.exit_codes import allowed_failures
from mstar.training.loop import Loop, LoopConfig
from mstar.training.optimizers import set_rates, warmup_cosine
from mstar.training.sessions import Session, TrainState
from mstar.training.step_progress import StepProgress
from mstar.training.tracking import start_tracking

log = logging.getLogger("mstar.stage1")


@dataclass(slots=True, kw_only=True)
class Stage1:
    """Everything that one rank holds."""

    config: Stage1Config
    session: Session
    cases: Stage1Cases
    inputs: CaseInputs
    plan: StepPlan
    engine: Engine
    duplicates: Int64[np.ndarray, " case"]
    state: TrainState
    exporter: Exporter
    found_bad: dict[tuple[str, str], BadInput]
    validation: Validation | None = None

    @property
    def model(self) -> MultimodalModel:
        """The model being trained."""
        assert isinstance(self.engine.module, MultimodalModel)
        return self.engine.module


def train(session: Session, config: Stage1Config) -> None:
    """Train to the end on this rank, from the newest checkpoint where there is one."""
    with ExitStack() as stack:
        run_log = RunLog(config.out) if session.rank == 0 else None
        if run_log is not None:
            stack.enter_context(run_log.with_warnings())
        run = prepare(session, config, run_log)
        try:
            ended = go(run, run_log)
            merge_found_bad(run)
            if session.rank == 0:
                run.exporter.finish(run.model, ended, run.validation, run.found_bad.values())
        except (InterruptedRunError, KeyboardInterrupt):
            run.exporter.tracker.finish("KILLED")
            raise
        except Exception:
            run.exporter.tracker.finish("FAILED")
            raise


def prepare(session: Session, config: Stage1Config, run_log: RunLog | None) -> Stage1:
    """Open the inputs, build the model, and take up the newest checkpoint."""
    found_bad: dict[tuple[str, str], BadInput] = {}
    inputs, sources = open_inputs(config, lambda one: note_bad(found_bad, one))
    cases = choose_cases(config, sources)
    plan = StepPlan.of(config, cases.train)
    guaranteed = plan.check()
    inputs.bins = fitted_bins(config, sources.expression, cases)
    digests = input_digests(cases, sources, inputs.tokenizer)
    dim = feature_dim(sources.bags, cases.train)
    model = build_model(config, feature_dim=dim, expression=sources.expression).to(session.device)
    optimizer = build_optimizer(model, config)
    with newest_checkpoint(session, config) as folder:
        state = start_state(folder, config, session, digests)
        engine = make_engine(
            model,
            optimizer,
            config.engine,
            grad_clip=config.optimizer.grad_clip,
            resume=folder,
        )
        found_bad |= {(one.case_id, one.modality): one for one in read_found_bad(folder)}
    exporter = Exporter(
        config=config,
        facts=facts_of(config, cases, digests, guaranteed, num_steps=plan.num_steps),
        genes=tuple(sources.expression.genes) if sources.expression is not None else (),
        tokenizer=inputs.tokenizer,
        run_log=run_log,
        history=run_log.history(state.step) if run_log is not None else [],
    )
    if config.tracking and session.rank == 0:
        run_id = state.run_id or None
        exporter.tracker = start_tracking("stage1", config, out=config.out, run_id=run_id)
        state = replace(state, run_id=exporter.tracker.run_id)
    return Stage1(
        config=config,
        session=session,
        cases=cases,
        inputs=inputs,
        plan=plan,
        engine=engine,
        duplicates=duplicates_of(cases, inputs),
        state=state,
        exporter=exporter,
        found_bad=found_bad,
    )


def note_bad(found: dict[tuple[str, str], BadInput], one: BadInput) -> None:
    """Name an unusable input the first time it is met."""
    if (one.case_id, one.modality) not in found:
        found[one.case_id, one.modality] = one
        log.warning("left out: case %s, %s: %s", one.case_id, one.modality, one.reason)


def duplicates_of(cases: Stage1Cases, inputs: CaseInputs) -> Int64[np.ndarray, " case"]:
    """Which validation cases have near-duplicate reports."""
    if inputs.tokenizer is None:
        return np.arange(len(cases.val))
    reports = [one.case.report if "text" in one.modalities else None for one in cases.val]
    return near_duplicates(reports, inputs.token_ids.__getitem__)


def go(run: Stage1, run_log: RunLog | None) -> TrainState:
    """The loop, from the run's state to the end."""
    config, session, num_steps = run.config, run.session, run.plan.num_steps
    loop_config = LoopConfig(
        num_steps=num_steps,
        validate_every=run.plan.per_epoch * config.validate_every_epochs,
        checkpoint_every=run.plan.per_epoch * config.checkpoint_every_epochs,
        patience=config.patience,
    )
    watch = Stage1Watch(max_scale=LARGEST_SCALE)
    progress = None
    if run_log is not None:
        run_log.say(header(run))
        progress = StepProgress(
            "stage1", num_steps=num_steps, steps_done=run.state.step, say=run_log.say
        )

    def on_log(step: int, metrics: Mapping[str, float]) -> None:
        run.exporter.record(step, metrics, watch)
        if progress is not None and "loss" in metrics:
            progress.update(step, num_cases=int(metrics["cases"]), loss=metrics["loss"])

    def on_best(step: int, metrics: Mapping[str, float]) -> None:
        if session.rank == 0:
            run.exporter.keep(run.model, step, run.validation, run.found_bad.values())

    with Ahead(lambda step: chunks_at(run, step), num_steps) as ahead:
        return Loop(
            config=loop_config,
            session=session,
            state=run.state,
            step=lambda step: one_step(run, ahead.get(step), step),
            validate=lambda step: validate(run),
            write=lambda folder: write_checkpoint(run, folder, run_log),
            on_best=on_best,
            tracker=run.exporter.tracker,
            on_log=on_log,
        ).run()


def header(run: Stage1) -> str:
    """What is about to be trained, in a line."""
    cases, plan = run.cases, run.plan
    return (
        f"stage1: {len(cases.train):,} cases to train on, {len(cases.val):,} to validate, "
        f"{cases.held_out:,} held out · {plan.num_steps:,} steps in {run.config.epochs:,} epochs "
        f"· {run.session.world_size} rank(s) on {run.session.device.type}, "
        f"{run.config.engine.engine} {run.config.engine.precision}"
    )


def write_checkpoint(run: Stage1, folder: Path, run_log: RunLog | None) -> None:
    """This rank's files of a checkpoint."""
    run.engine.save(folder)
    write_found_bad(folder, list(run.found_bad.values()), run.session.rank)
    if run_log is not None:
        run_log.publish()


def chunks_at(run: Stage1, step: int) -> list[Chunk]:
    """This rank's share of a step's batch, in as many chunks as every other rank has."""
    config, session = run.config, run.session
    batch = run.plan.at(step)
    most = -(-len(batch) // session.world_size)
    return chunks_of(
        run.inputs,
        spread(run.cases.train, share_of(batch, session.rank, session.world_size)),
        chunk_cases=config.chunk_cases,
        num_chunks=-(-most // config.chunk_cases),
        epoch=step // run.plan.per_epoch,
    )


def one_step(run: Stage1, chunks: list[Chunk], step: int) -> Mapping[str, float]:
    """One optimiser step and its numbers."""
    config = run.config
    refuse_too_many(run)
    factor = warmup_cosine(run.plan.num_steps, config.optimizer)(step)
    rates = set_rates(run.engine.optimizer, factor)
    parts, embedded, norm = cached_step(
        run.engine,
        chunks,
        lambda cases, scale: stage1_loss(cases, scale, config.active_loss),
        seed=config.seed,
        step=step,
        rank=run.session.rank,
        precision=config.engine.precision,
    )
    scale = float(run.model.logit_scale.log_scale.detach().exp())
    return {
        **loss_metrics(parts, scale, norm),
        **spread_metrics(embedded),
        "lr": rates["scale.no_decay"],
        "epoch": step // run.plan.per_epoch,
        "cases": len(embedded.cancer),
    }


def spread_metrics(embedded: CaseEmbeddings) -> Mapping[str, float]:
    """Uniformity of each modality's vectors in the batch, for the collapse alarm."""
    found = {}
    for name in MODALITIES:
        vectors = embedded.vectors(name)[embedded.has(name)].float().cpu().numpy()
        if len(vectors) > 2:
            found[f"uniformity.{name}"] = uniformity(vectors)
    return found


def refuse_too_many(run: Stage1) -> None:
    """Raises when reading has found bad inputs that are not allowed, or more than are."""
    if not run.found_bad:
        return
    first = next(iter(run.found_bad.values()))
    if run.config.bad_cases == "refuse":
        raise FeatureError(first.reason)
    num_cases = len(run.cases.train) + len(run.cases.val)
    num_bad = len({one.case_id for one in (*run.found_bad.values(), *run.cases.bad)})
    if num_bad > allowed_failures(run.config.max_bad_cases, num_cases):
        raise TrainingError(
            f"{num_bad} of {num_cases} cases have inputs that cannot be used, "
            f"{run.config.max_bad_cases} are allowed; one of them: {first.reason} "
            "Correct them, or raise --max-bad-cases."
        )


def merge_found_bad(run: Stage1) -> None:
    """Bad inputs that any rank has met become known to all. Collective."""
    if world_size() == 1:
        return
    ranks: list[Any] = [None] * world_size()
    dist.all_gather_object(ranks, run.found_bad)
    for found in ranks:
        run.found_bad |= found


def validate(run: Stage1) -> tuple[Mapping[str, float], float | None]:
    """Metrics of the held-out cases, and the one to select on. Collective."""
    config = run.config
    merge_found_bad(run)
    if not run.cases.val:
        return {}, None
    vectors = embed_cases(
        run.model,
        run.inputs,
        run.cases.val,
        chunk_cases=config.chunk_cases,
        precision=config.engine.precision,
        rank=run.session.rank,
    )
    classes = None
    if run.inputs.tokenizer is not None and "wsi" in config.on:
        classes = class_vectors(
            run.model, run.inputs.tokenizer, run.cases.cancers, config.engine.precision
        )
    run.validation = measure(vectors, duplicates=run.duplicates, class_vectors=classes)
    metrics = run.validation.metrics
    return metrics, metrics.get(f"val.{config.select_on}")
