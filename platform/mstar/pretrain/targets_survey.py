"""What a run of `mstar targets` has before it, found out and said before anything is started."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mstar.data.targets import TargetStore, read_record
from mstar.errors import ConfigError, StorageError
from mstar.features.store import FeatureStore
from mstar.pretrain.stage1_facts import FACTS_FILE, read_json
from mstar.pretrain.targets_cases import (
    ChosenCases,
    FeatureKind,
    TargetCase,
    choose_cases,
    feature_kind,
    list_features,
    to_be_done,
)
from mstar.pretrain.targets_config import TargetsConfig
from mstar.pretrain.targets_plan import TargetsPlan, check_features, identity_of
from mstar.pretrain.targets_teacher import TeacherSpec, settle_teacher
from mstar.storage import objects
from mstar.storage.cache import SlideCache, default_cache_dir
from mstar.storage.ledger import Failure, FailureLedger

FILE_BYTES = 16_384  # of a target file beyond its rows: attributes, and alignment to pages
ROW_BYTES = 8 + 16  # row and coordinates of a target


@dataclass(slots=True, kw_only=True)
class Standing:
    """Where a cohort stands.

    pending: cases still to be done. slides_done, slides_failed: of the other cases.
    reasons: kind of failure → cases.
    """

    total: int
    total_slides: int
    done: int
    failed: int
    slides_done: int
    slides_failed: int
    pending: tuple[TargetCase, ...]
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The work of a run, and what it is done with."""

    config: TargetsConfig
    chosen: ChosenCases
    cases: tuple[TargetCase, ...]
    teacher: TeacherSpec
    kind: FeatureKind
    features_fingerprint: str

    def plan(self, *, device: str, run_id: str) -> TargetsPlan:
        """What travels to the workers."""
        teacher = replace(self.teacher, device=device)
        return TargetsPlan(
            config=self.config,
            run_id=run_id,
            teacher=teacher,
            features=self.kind,
            features_fingerprint=self.features_fingerprint,
            identity=self.identity(device),
        )

    def identity(self, device: str) -> dict[str, Any]:
        """What names the targets that this run makes on a device."""
        teacher = replace(self.teacher, device=device)
        fingerprint = self.features_fingerprint
        return identity_of(self.config, teacher, self.chosen, self.kind, fingerprint)

    def targets(self, cases: Iterable[TargetCase]) -> int:
        """Targets of some cases, about."""
        whole = self.config.coverage == "all"
        most = self.teacher.window
        return sum(one.num_patches if whole else min(one.num_patches, most) for one in cases)

    def bytes(self, cases: Iterable[TargetCase]) -> int:
        """Bytes of the target files of some cases, about."""
        cases = tuple(cases)
        row_bytes = 2 * self.teacher.dim + ROW_BYTES
        return self.targets(cases) * row_bytes + sum(len(one.slides) for one in cases) * FILE_BYTES


def survey(config: TargetsConfig) -> Survey:
    """Look at cohort, features and aggregator.

    Raises:
        MstarError: they do not go together.
    """
    teacher = settle_teacher(config, device="cpu")
    store = FeatureStore.open(config.features)
    _refuse_same_place(config)
    chosen = choose_cases(config)
    files = list_features(store, chosen.cases)
    run = config.run
    cache = SlideCache(run.cache_dir or default_cache_dir(), max_bytes=int(run.cache_gb * 1e9))
    kind = feature_kind(store, files, cache)
    check_features(config, teacher, kind, store.fingerprint)
    return Survey(
        config=config,
        chosen=chosen,
        cases=tuple(to_be_done(chosen.cases, files, kind, config.features)),
        teacher=teacher,
        kind=kind,
        features_fingerprint=store.fingerprint,
    )


def stand(found: Survey, run_id: str) -> Standing:
    """Which cases are done, given up, or still to be done."""
    root = objects.join(found.config.out, "targets")
    done = set() if read_record(root) is None else _done_slides(found.config.out)
    failures = {one.slide_id: one for one in FailureLedger(objects.join(root, "failures")).all()}
    standing = Standing(
        total=len(found.cases),
        total_slides=sum(len(case.slides) for case in found.cases),
        done=0,
        failed=0,
        slides_done=0,
        slides_failed=0,
        pending=(),
        reasons={},
    )
    pending = []
    for case in found.cases:
        failure = failures.get(case.case_id)
        if done.issuperset(case.slides):
            standing.done += 1
            standing.slides_done += len(case.slides)
        elif failure is not None and _given_up(failure, case, found.config, run_id):
            standing.failed += 1
            standing.slides_failed += len(case.slides)
            standing.reasons[failure.kind] = standing.reasons.get(failure.kind, 0) + 1
        else:
            pending.append(case)
    standing.pending = tuple(pending)
    return standing


def _done_slides(out: str) -> set[str]:
    return set(TargetStore.open(out).slide_ids())


def _given_up(failure: Failure, case: TargetCase, config: TargetsConfig, run_id: str) -> bool:
    """Not again in the run it failed in; permanent ones only when asked, or with new features."""
    if failure.run_id == run_id:
        return True
    return failure.permanent and failure.uri == case.inputs and not config.run.retry_failed


def notes(found: Survey) -> list[str]:
    """What the caller should know before the run, a line each."""
    chosen, teacher, lines = found.chosen, found.teacher, []
    if not chosen.splits:
        lines.append("the cohort has no split registry: no case is held out")
    elif teacher.splits is not None and teacher.splits != chosen.splits:
        lines.append(
            "the aggregator was trained with another split registry: it may have seen cases that "
            "are held out now"
        )
    if chosen.held_out_taken:
        lines.append(
            f"{chosen.held_out_taken:,} of the cases are held out from pretraining; an encoder "
            "taught on them must not be tested on them"
        )
    facts = read_json(found.config.aggregator, FACTS_FILE)
    if facts is not None and not facts.get("complete", True):
        lines.append("stage 1 has not ended: the aggregator is its best so far")
    if teacher.features != found.features_fingerprint:
        lines.append("the features are others than the aggregator was trained on, as you allowed")
    return lines


def describe(found: Survey, standing: Standing) -> str:
    """The work to be done in a few lines."""
    chosen, teacher, config = found.chosen, found.teacher, found.config
    about = found.targets(standing.pending)
    padded = f", filled up to {teacher.padded_to:,}" if teacher.padded_to else ""
    kind = f"{teacher.config['mode']} {teacher.config['attention']}"
    lines = [
        f"targets: {len(standing.pending):,} of {standing.total:,} cases to do "
        f"({standing.done:,} done, {standing.failed:,} failed before; left out: "
        f"{chosen.held_out:,} held out, {chosen.without_slides:,} without slides)",
        f"  teacher   {kind}, {teacher.input_dim} → {teacher.dim}, windows of at most "
        f"{teacher.window:,}{padded}, {teacher.precision}",
        f"  coverage  {config.coverage}: about {about:,} targets",
        f"  disk      {found.bytes(standing.pending) / 1e9:,.2f} GB to write, {_free(config.out)}",
    ]
    return "\n".join([*lines, *(f"  note      {line}" for line in notes(found))])


def check_room(found: Survey, standing: Standing) -> None:
    """Refuse to start what cannot fit.

    Raises:
        StorageError: the disk has less room than the targets need.
    """
    free, needed = free_bytes(found.config.out), found.bytes(standing.pending)
    if free is not None and needed > free:
        raise StorageError(
            f"{found.config.out}: expected room for {needed / 1e9:,.2f} GB of targets, got "
            f"{free / 1e9:,.2f} GB. Free some space, or choose another --out."
        )


def free_bytes(out: str) -> int | None:
    """Free bytes of the disk that an output is, or will be, on; None for an object store."""
    if not objects.is_local(out):
        return None
    path = objects.local_path(out).absolute()
    return shutil.disk_usage(next(one for one in (path, *path.parents) if one.exists())).free


def _free(out: str) -> str:
    free = free_bytes(out)
    return "into an object store" if free is None else f"{free / 1e9:,.1f} GB free"


def _refuse_same_place(config: TargetsConfig) -> None:
    """Targets below features would be taken for features, and the other way round."""
    out, features = f"{config.out.rstrip('/')}/", f"{config.features.rstrip('/')}/"
    if out.startswith(features) or f"{out}targets/".startswith(features):
        raise ConfigError(
            f"--out {config.out}: expected a folder outside the feature store {config.features}"
        )
