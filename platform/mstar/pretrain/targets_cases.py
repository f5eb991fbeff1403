"""Which cases get targets, and how much work that is, told without opening their files.

Targets of held-out cases are made only when asked for: they would teach the patch encoder on the
cases that it is tested on.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mstar.data.cases import Case, read_cases
from mstar.data.splits.registry import SplitRegistry, has_registry, read_registry
from mstar.errors import CohortError, FeatureError
from mstar.features.files import FeatureProvenance, map_features, read_provenance
from mstar.features.store import FeatureStore
from mstar.pretrain.targets_config import TargetsConfig
from mstar.storage import objects
from mstar.storage.cache import SlideCache
from mstar.storage.objects import FileInfo

NUM_LOOKS = 5  # files tried until one can be read
COORDS_BYTES = 16  # of a patch


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetCase:
    """A case to be done.

    num_patches: by the size of its files, a few off.
    inputs: names the feature files as they are now; another name, another chance for a case whose
        failure was permanent.
    """

    case_id: str
    slides: tuple[str, ...]
    num_patches: int
    inputs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenCases:
    """The cases that get targets.

    without_slides, held_out: cases left out. held_out_taken: cases that pretraining does not see
        and that get targets all the same, because that was asked for.
    splits: digest of the split registry, empty when the cohort has none.
    data_source: real or generated, as the cohort's record says; what is made from it says so too.
    """

    cases: tuple[Case, ...]
    without_slides: int
    held_out: int
    held_out_taken: int
    splits: str
    data_source: str

    @property
    def digest(self) -> str:
        """Names the cases and their slides, in any order of the table."""
        rows = sorted([case.case_id, *case.slides] for case in self.cases)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureKind:
    """What all files of a feature store share, as one of them says.

    header_bytes: of a file beyond its rows.
    """

    dim: int
    dtype: str
    header_bytes: int
    provenance: FeatureProvenance

    def rows(self, size_bytes: int) -> int:
        """Patches of a file of this size, about."""
        item = {"float16": 2, "float32": 4}[self.dtype]
        return max(0, size_bytes - self.header_bytes) // (item * self.dim + COORDS_BYTES)


def choose_cases(config: TargetsConfig) -> ChosenCases:
    """The cases with slides that the config asks for.

    Raises:
        CohortError: there are none, or the split registry is of another case table.
    """
    cases = read_cases(objects.join(config.cohort, "cases.csv"))
    registry = read_registry(config.cohort) if has_registry(config.cohort) else None
    if registry is not None:
        registry.check_cases(cases)
    seen = registry.pretraining if registry is not None else {case.case_id for case in cases}
    wanted = _wanted(config, cases, registry)
    chosen = tuple(case for case in cases if case.case_id in wanted and case.slides)
    if not chosen:
        raise CohortError(
            f"{config.cohort}: expected cases with slides among those of --cases {config.cases}, "
            "got none. Look at `mstar cohort check` and at the split registry."
        )
    return ChosenCases(
        cases=chosen,
        without_slides=sum(case.case_id in wanted and not case.slides for case in cases),
        held_out=sum(case.case_id not in wanted for case in cases),
        held_out_taken=sum(case.case_id not in seen for case in chosen),
        splits=registry.digest if registry is not None else "",
        data_source=data_source_of(config.cohort),
    )


def data_source_of(cohort: str) -> str:
    """`generated` where the cohort's own record says so, else `real`."""
    try:
        record = json.loads(objects.read_bytes(objects.join(cohort, "cohort.json")))
    except (FileNotFoundError, NotADirectoryError):
        return "real"
    return str(record.get("data_source", "real"))


def _wanted(
    config: TargetsConfig, cases: Iterable[Case], registry: SplitRegistry | None
) -> frozenset[str]:
    if config.cases == "all" or registry is None:
        return frozenset(case.case_id for case in cases)
    val = {row.case_id for row in registry.rows if row.part == "val"}
    return registry.pretraining | (val if config.cases == "pretraining-val" else set())


def list_features(store: FeatureStore, cases: Sequence[Case]) -> dict[str, FileInfo]:
    """The feature files of the cases' slides that are there."""
    wanted = {slide for case in cases for slide in case.slides}
    suffix = store.record.suffix
    files = objects.list_files(store.root, suffix=suffix)
    named = ((info.rel.removesuffix(suffix), info) for info in files)
    return {slide: info for slide, info in named if slide in wanted}


def feature_kind(
    store: FeatureStore, files: Mapping[str, FileInfo], cache: SlideCache
) -> FeatureKind:
    """Length, type and provenance of a store's features, from the first file that can be read.

    Raises:
        FeatureError: none of those tried can be, or the cases have none.
    """
    trouble = FeatureError(
        f"{store.root}: has no features of the chosen cases. Give the store of the cohort's slides."
    )
    for slide in sorted(files)[:NUM_LOOKS]:
        with cache.stage(files[slide].uri) as path:
            try:
                features, provenance = map_features(path), read_provenance(path)
            except FeatureError as error:
                trouble = error
                continue
        row_bytes = features.itemsize * features.shape[1] + COORDS_BYTES
        return FeatureKind(
            dim=features.shape[1],
            dtype=features.dtype.name,
            header_bytes=files[slide].size_bytes - len(features) * row_bytes,
            provenance=provenance,
        )
    raise trouble


def to_be_done(
    cases: Iterable[Case], files: Mapping[str, FileInfo], kind: FeatureKind, root: str
) -> Iterator[TargetCase]:
    """The cases as work; slides without a file count as empty, and will fail their case."""
    for case in cases:
        found = [files[slide] for slide in case.slides if slide in files]
        tags = json.dumps([[info.rel, info.size_bytes, info.tag] for info in found])
        yield TargetCase(
            case_id=case.case_id,
            slides=case.slides,
            num_patches=sum(kind.rows(info.size_bytes) for info in found),
            inputs=f"{root}#{hashlib.sha256(tags.encode()).hexdigest()[:16]}",
        )
