"""The end of a run of stage 2: export, pictures, model registry, facts."""

import json
from collections.abc import Mapping

from mstar.config import to_dict
from mstar.pretrain.stage2_export import ExportFacts, export, register
from mstar.pretrain.stage2_figures import curves, neighbours
from mstar.pretrain.stage2_prepare import Stage2
from mstar.pretrain.stage2_watch import encode
from mstar.storage import objects
from mstar.training.sessions import TrainState

FACTS_FILE = "stage2.json"
# of the machine or the attempt: equal runs leave equal files
NOT_A_RESULT = ("step", "pid", "step_s", "patches_per_s", "input_wait", "gpu_gb")


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
