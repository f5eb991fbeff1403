"""Stage 1 on one rank: inputs, model and engine put together, then the loop.

`train` is what every worker of the group runs, and what a run without Ray calls directly.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from mstar.config import to_dict
from mstar.errors import InterruptedRunError
from mstar.losses.cases import MODALITIES, CaseEmbeddings
from mstar.losses.recall import uniformity
from mstar.losses.stage1 import stage1_loss
from mstar.models.multimodal import LARGEST_SCALE, MultimodalModel
from mstar.pretrain.batch_plan import share_of
from mstar.pretrain.cached_step import Chunk, cached_step, loss_metrics
from mstar.pretrain.stage1_batches import Ahead, CaseInputs, chunks_of, spread
from mstar.pretrain.stage1_cases import Stage1Cases, choose_cases
from mstar.pretrain.stage1_config import Stage1Config
from mstar.pretrain.stage1_export import Exporter
from mstar.pretrain.stage1_facts import facts_of, input_digests
from mstar.pretrain.stage1_found_bad import FoundBad
from mstar.pretrain.stage1_init import bins_of, initialise, read_start
from mstar.pretrain.stage1_model import build_model, build_optimizer
from mstar.pretrain.stage1_plan import StepPlan
from mstar.pretrain.stage1_resume import newest_checkpoint, start_state
from mstar.pretrain.stage1_sources import duplicates_of, feature_dim, fitted_bins, open_inputs
from mstar.pretrain.stage1_summary import header
from mstar.pretrain.stage1_validate import Validation, class_vectors, embed_cases, measure
from mstar.pretrain.stage1_watch import Stage1Watch
from mstar.training.engines import Engine, make_engine
from mstar.training.loop import Loop, LoopConfig
from mstar.training.optimizers import set_rates, warmup_cosine
from mstar.training.run_log import RunLog
from mstar.training.sessions import Session, TrainState
from mstar.training.step_progress import StepProgress
from mstar.training.tracking import start_tracking


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
    found_bad: FoundBad
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
            run.found_bad.merge()
            if session.rank == 0:
                run.exporter.finish(run.model, ended, run.validation, run.found_bad)
        except (InterruptedRunError, KeyboardInterrupt):
            run.exporter.tracker.finish("KILLED")
            raise
        except Exception:
            run.exporter.tracker.finish("FAILED")
            raise


def prepare(session: Session, config: Stage1Config, run_log: RunLog | None) -> Stage1:
    """Open the inputs, build the model, and take up the newest checkpoint."""
    found_bad = FoundBad(config=config)
    inputs, sources = open_inputs(config, found_bad.note)
    cases = choose_cases(config, sources)
    plan = StepPlan.of(config, cases.train)
    guaranteed = plan.check()
    start = read_start(config)
    inputs.bins = fitted_bins(config, sources.expression, cases)
    digests = input_digests(cases, sources, inputs.tokenizer, start.digest if start else "")
    dim = feature_dim(sources.bags, cases.train)
    model = build_model(config, feature_dim=dim, expression=sources.expression).to(session.device)
    if start is not None:
        inputs.bins = bins_of(config, start)
        initialise(model, start, expression=sources.expression, tokenizer=inputs.tokenizer)
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
        found_bad.read(folder)
    exporter = Exporter(
        config=config,
        facts={
            **facts_of(config, cases, digests, guaranteed, num_steps=plan.num_steps),
            "binning": to_dict(inputs.bins),  # with the edges that the training cases gave
        },
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
        run_log.say(header(config, run.cases, num_steps, session))
        progress = StepProgress(
            "stage1", num_steps=num_steps, steps_done=run.state.step, say=run_log.say
        )

    def on_log(step: int, metrics: Mapping[str, float]) -> None:
        run.exporter.record(step, metrics, watch)
        if progress is not None and "loss" in metrics:
            progress.update(step, num_cases=int(metrics["cases"]), loss=metrics["loss"])

    def on_best(step: int, metrics: Mapping[str, float]) -> None:
        if session.rank == 0:
            run.exporter.keep(run.model, step, run.validation, run.found_bad)

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


def write_checkpoint(run: Stage1, folder: Path, run_log: RunLog | None) -> None:
    """This rank's files of a checkpoint."""
    run.engine.save(folder)
    run.found_bad.write(folder)
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
    run.found_bad.refuse(run.cases)
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


def validate(run: Stage1) -> tuple[Mapping[str, float], float | None]:
    """Metrics of the held-out cases, and the one to select on. Collective."""
    config = run.config
    run.found_bad.merge()
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
