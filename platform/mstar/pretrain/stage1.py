"""The stage-1 job: `mstar stage1`, in this process or on a group of Ray workers."""

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mstar.config import to_json
from mstar.errors import ConfigError
from mstar.pretrain import forgetting
from mstar.pretrain.stage1_cases import Stage1Cases, choose_cases
from mstar.pretrain.stage1_config import Stage1Config
from mstar.pretrain.stage1_facts import FACTS_FILE, claim, read_json, refuse_other_run
from mstar.pretrain.stage1_init import read_start
from mstar.pretrain.stage1_plan import StepPlan
from mstar.pretrain.stage1_resume import checkpoint_root, run_name
from mstar.pretrain.stage1_run import train
from mstar.pretrain.stage1_sources import open_inputs
from mstar.pretrain.stage1_summary import summary
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode
from mstar.training.run_log import LOG_FILE, followed, log_folder
from mstar.training.sessions import LocalSession

log = logging.getLogger("mstar.stage1")


def run(config: Stage1Config) -> int:
    """Run `mstar stage1` and return its exit code."""
    config = with_absolute_paths(config)
    refuse_other_run(config)
    read_start(config)  # refuses what cannot be gone on from, before anything is read
    if config.dry_run:
        return preview(config)
    facts = read_json(config.out, FACTS_FILE)
    if facts is not None and facts["complete"]:
        refuse_other_start(config, facts)
        print("\n".join(summary(config, facts, None)), flush=True)
        say_what_changed(config)
        return ExitCode.COMPLETE
    began_s = time.monotonic()
    claim(config)
    if config.group.workers == 0:
        train_here(config)
    else:
        train_on_group(config)
    facts = read_json(config.out, FACTS_FILE)
    assert facts is not None, "the run has exported its encoders"
    print("\n".join(summary(config, facts, time.monotonic() - began_s)), flush=True)
    say_what_changed(config)
    return ExitCode.COMPLETE


def refuse_other_start(config: Stage1Config, facts: Mapping[str, Any]) -> None:
    """Raises ConfigError when a complete output began with other encoders than are asked for."""
    start = read_start(config)
    before, now = facts["inputs"].get("init_from", ""), start.digest if start else ""
    if before != now:
        raise ConfigError(
            f"{config.out}: holds a stage 1 that began "
            f"{'with other encoders' if before else 'from nothing'} than --init-from says "
            f"({config.init_from or 'nothing'}). Give another --out."
        )


def say_what_changed(config: Stage1Config) -> None:
    """Of a run that began with another's encoders: measure what is forgotten, once; print it."""
    start = read_start(config)
    if start is None or objects.exists(objects.join(config.out, forgetting.JSON_FILE)):
        return
    from mstar.pretrain.stage1_forgetting import FIRST, compare
    from mstar.training.ray_train import device_of

    parts = compare(config, start, device_of(config.device))
    forgetting.write(config.out, start.folder, parts)
    print("\n".join(forgetting.summary_lines(config.out, parts, FIRST)), flush=True)


def train_here(config: Stage1Config) -> None:
    """Train in this process, without Ray."""
    from mstar.training.ray_train import device_of

    checkpoints = checkpoint_root(config, alone=True)
    device, keep = device_of(config.device), config.group.keep_checkpoints
    train(LocalSession(checkpoints, device=device, keep=keep), config)


def train_on_group(config: Stage1Config) -> None:
    """Train on a group of Ray workers; what is wrong with the inputs is said before it starts."""
    from mstar.training.cluster import ray_session
    from mstar.training.interrupts import stop_on_sigterm
    from mstar.training.ray_train import train_on_ray

    survey(config)
    with ray_session(), followed(log_folder(config.out) / LOG_FILE):
        stop_on_sigterm()  # ray.init has taken the signal for itself
        train_on_ray(
            train,
            config,
            config.group,
            name=run_name(config),
            storage=objects.join(config.out, "checkpoints"),
        )


def with_absolute_paths(config: Stage1Config) -> Stage1Config:
    """The config as workers in other folders can use it."""

    def absolute(uri: str) -> str:
        local = objects.is_local(uri) and "://" not in uri
        return str(objects.local_path(uri).absolute()) if local else uri

    text = config.text
    if objects.is_local(text) and objects.local_path(text).is_dir():
        text = absolute(text)
    return replace(
        config,
        cohort=absolute(config.cohort),
        features=absolute(config.features),
        out=absolute(config.out),
        init_from=absolute(config.init_from) if config.init_from else "",
        old_cohort=absolute(config.old_cohort) if config.old_cohort else "",
        old_features=absolute(config.old_features) if config.old_features else "",
        text=text,
    )


def survey(config: Stage1Config) -> tuple[Stage1Cases, StepPlan]:
    """The cases and batches of a run, without training it.

    Raises:
        MstarError: what is there cannot be trained on.
    """
    _, sources = open_inputs(config, lambda bad: None)
    cases = choose_cases(config, sources)
    plan = StepPlan.of(config, cases.train)
    plan.check()
    return cases, plan


def preview(config: Stage1Config) -> int:
    """Print the config and what would be trained; nothing is written."""
    print(to_json(config))
    cases, plan = survey(config)
    found = plan.check()
    pairs = ", ".join(
        f"{n} {'–'.join(pair)}" for pair, n in found.pairs.items() if set(pair) <= config.on
    )
    print(
        f"stage1 would train on {len(cases.train):,} cases and validate on {len(cases.val):,} "
        f"({cases.held_out:,} held out, {cases.too_few:,} with fewer than two modalities): "
        f"{plan.num_steps:,} steps in {config.epochs:,} epochs of {plan.per_epoch:,}; every batch "
        f"holds at least {pairs} pairs and {found.cancers} cancer types twice"
    )
    for one in cases.bad:
        print(f"left out: {one.case_id} {one.modality}: {one.reason}", file=sys.stderr)
    return ExitCode.COMPLETE
