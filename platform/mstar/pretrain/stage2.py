"""The stage-2 job: `mstar stage2`, in this process or on a group of Ray workers."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mstar.config import to_json
from mstar.data.shards.format import ShardIndex
from mstar.data.shards.order import EpochOrder
from mstar.data.shards.pieces import group_rows
from mstar.models.weights import BUILT_IN
from mstar.pretrain import forgetting
from mstar.pretrain.stage1_facts import read_json
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.stage2_finish import FACTS_FILE
from mstar.pretrain.stage2_prepare import total_steps
from mstar.pretrain.stage2_resume import (
    Inputs,
    checkpoint_root,
    claim,
    open_inputs,
    refuse_other_run,
    run_identity,
    run_name,
)
from mstar.pretrain.stage2_run import train
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode
from mstar.training.run_log import LOG_FILE, followed, log_folder
from mstar.training.sessions import LocalSession


def run(config: Stage2Config) -> int:
    """Run `mstar stage2` and return its exit code."""
    config = with_absolute_paths(config)
    inputs = open_inputs(config)
    identity = run_identity(config, inputs)
    refuse_other_run(config.out, identity)
    if config.dry_run:
        return preview(config, inputs.index)
    facts = read_json(config.out, FACTS_FILE)
    if facts is not None and facts["complete"]:
        print("\n".join(summary(config, facts, None)), flush=True)
        say_what_changed(config, inputs)
        return ExitCode.COMPLETE
    began_s = time.monotonic()
    claim(config, identity)
    if config.group.workers == 0:
        train_here(config, identity)
    else:
        train_on_group(config, identity)
    print(
        "\n".join(summary(config, read_facts(config.out), time.monotonic() - began_s)), flush=True
    )
    say_what_changed(config, inputs)
    return ExitCode.COMPLETE


def say_what_changed(config: Stage2Config, inputs: Inputs) -> None:
    """Of a run that began with another's encoder: measure what has changed, once; print it."""
    if inputs.start is None or objects.exists(objects.join(config.out, forgetting.JSON_FILE)):
        return
    from mstar.pretrain.stage2_forgetting import FIRST, compare
    from mstar.training.ray_train import device_of

    parts = compare(config, inputs.start, inputs, device_of(config.device))
    forgetting.write(config.out, inputs.start.folder, parts)
    print("\n".join(forgetting.summary_lines(config.out, parts, FIRST)), flush=True)


def train_here(config: Stage2Config, identity: Mapping[str, Any]) -> None:
    """Train in this process, without Ray."""
    from mstar.training.ray_train import device_of

    checkpoints = checkpoint_root(config.out, identity, alone=True)
    device, keep = device_of(config.device), config.group.keep_checkpoints
    train(LocalSession(checkpoints, device=device, keep=keep), config)


def train_on_group(config: Stage2Config, identity: Mapping[str, Any]) -> None:
    """Train on a group of Ray workers."""
    from mstar.training.cluster import ray_session
    from mstar.training.interrupts import stop_on_sigterm
    from mstar.training.ray_train import train_on_ray

    with ray_session(), followed(log_folder(config.out) / LOG_FILE):
        stop_on_sigterm()  # ray.init has taken the signal for itself
        train_on_ray(
            train,
            config,
            config.group,
            name=run_name(identity),
            storage=objects.join(config.out, "checkpoints"),
        )


def with_absolute_paths(config: Stage2Config) -> Stage2Config:
    """The config as workers in other folders can use it."""

    def absolute(uri: str) -> str:
        if "://" in uri or uri.startswith(("hf-hub:", "random:")) or uri in ("", BUILT_IN):
            return uri
        return str(objects.local_path(uri).absolute())

    return replace(
        config,
        shards=absolute(config.shards),
        weights=absolute(config.weights),
        out=absolute(config.out),
        knn_labels=absolute(config.knn_labels),
        init_from=absolute(config.init_from),
        old_shards=absolute(config.old_shards),
    )


def preview(config: Stage2Config, index: ShardIndex) -> int:
    """Print the config and what would be trained; nothing is written."""
    print(to_json(config))
    order = EpochOrder(group_rows(index), config.order, 0)
    steps = total_steps(config, order.num_steps)
    world = max(1, config.group.workers)
    size_bytes = sum(shard.num_bytes for shard in index.shards)
    print(
        f"stage2 would train {index.encoder.name} on {index.num_rows:,} patches of "
        f"{index.counts.num_slides:,} slides ({size_bytes / 1e9:,.3f} GB in "
        f"{len(index.shards):,} shards): {steps:,} steps of {config.batch_patches:,} patches "
        f"({config.batch_patches / world:,.0f} a worker), {order.num_steps:,} an epoch; "
        f"{order.padding_share(world):.2%} of the places are padding"
    )
    return ExitCode.COMPLETE


def read_facts(out: str) -> dict[str, Any]:
    """`stage2.json` of an output."""
    found = read_json(out, FACTS_FILE)
    assert found is not None, "the run has exported its encoder"
    return found


def summary(config: Stage2Config, facts: Mapping[str, Any], elapsed_s: float | None) -> list[str]:
    """The end of the job on one screen; without a time when it had ended before."""
    found = facts["metrics"]
    counts = facts["facts"]["counts"]
    took = "already complete" if elapsed_s is None else f"complete in {elapsed_s:,.0f} s"
    lines = [
        f"stage2: {took}",
        f"  trained   {facts['steps_done']:,} steps on {counts['patches']:,} patches of "
        f"{counts['slides']:,} slides; {facts['bad_rows']:,} rows left out",
        f"  loss      {found['loss']:.4f} (A {found['loss.a']:.4f}, B {found['loss.b']:.4f}); "
        f"cosine to the targets {found['cosine.a']:.3f}",
    ]
    if "watch.drift" in found:
        lines.append(
            f"  features  drift {found['watch.drift']:.3f}, neighbours kept "
            f"{found['watch.neighbours_kept']:.2f}, effective rank "
            f"{found['watch.effective_rank_share']:.2f} of the first"
        )
    if "knn.balanced_accuracy" in found:
        lines.append(
            f"  k-NN      balanced accuracy {found['knn.balanced_accuracy']:.3f} "
            f"(chance {found['knn.chance']:.3f})"
        )
    lines.append(
        f"  output    {config.out}: encoder.pth, encoder.safetensors, projection.safetensors, "
        "model_card.md"
    )
    return lines
