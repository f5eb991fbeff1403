"""`mstar heatmap`: which patches of a slide a model looks at, or which are like a text.

    <out>/<slide>/…              of each slide: scores, tiles, pictures, overlays (`views.py`)
    <out>/features/              features of the slides that no given store had, and their ledger
    <out>/failures.csv           slides without a heatmap, and why
    <out>/heatmap.json           the call, the models, the methods, the slides; written last

A slide whose scores.parquet is there is done; one of another model or method is refused.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mstar import __version__
from mstar.config import differences, to_dict, to_json
from mstar.errors import MstarError, StoreMismatchError
from mstar.evidence.asked_slides import AskedSlides, asked_slides, embedded
from mstar.evidence.config import ALL_CLASSES, HeatmapConfig
from mstar.evidence.scored import ScoredBag, Scorer
from mstar.evidence.scorers import make_scorer
from mstar.evidence.scores import FILE, PatchScores, SlideScores, read_scores
from mstar.evidence.views import ViewOptions, file_name, slide_folder, write_views
from mstar.features.coordless import require_coords
from mstar.features.files import SlideFeatures
from mstar.predict.rows import cases_of
from mstar.schema import RESEARCH_ONLY
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode, exit_code
from mstar.training.progress import ProgressReporter
from mstar.training.tracker import NullTracker, Tracker, ended
from mstar.training.tracking import start_tracking

__all__ = ["HeatmapConfig", "run"]

RECORD, FAILURES = "heatmap.json", "failures.csv"
PICTURES_TRACKED = 8
SHOWN = 5


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of the slides; notes: slide → what could not be drawn; patches: scored."""

    patches: int = 0
    made: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)


def run(config: HeatmapConfig) -> int:
    """Run the job; returns its exit code."""
    scorer = make_scorer(config)
    slides = asked_slides(config, scorer.expected)
    outcome = Outcome(failed=dict(slides.failed))
    outcome.there = _done(config, scorer, slides)
    print(_plan(config, scorer, slides, outcome), flush=True)
    if config.run.dry_run:
        print("Nothing was written.")
        return ExitCode.COMPLETE
    tracker: Tracker = NullTracker()
    if config.run.tracking:
        tracker = start_tracking("heatmap", config, out=config.out)
    with ended(tracker):
        if scorer.expected is not None and slides.to_embed:
            embedded(config, scorer.expected, slides)
            outcome.failed |= slides.failed
            outcome.there = _done(config, scorer, slides)
        _score_all(config, scorer, slides, outcome)
        _write(config, scorer, outcome)
        _track(config, tracker, outcome)
    _say(config, outcome)
    total = len(outcome.made) + len(outcome.there) + len(outcome.failed)
    return exit_code(len(outcome.failed), total, config.run.max_failures)


def _done(config: HeatmapConfig, scorer: Scorer, slides: AskedSlides) -> list[str]:
    """Slides whose scores are there.

    Raises:
        StoreMismatchError: they are of another model, text or method.
    """
    done = []
    for slide in slides.store_of:
        uri = objects.join(slide_folder(config.out, slide), FILE)
        if not objects.exists(uri):
            continue
        lines = list(differences(read_scores(uri).made_by["identity"], _plain(scorer.identity)))
        if lines:
            raise StoreMismatchError(
                f"{uri}: holds scores that were made otherwise: {'; '.join(lines)}. Choose another "
                "--out."
            )
        done.append(slide)
    return done


def _score_all(
    config: HeatmapConfig, scorer: Scorer, slides: AskedSlides, outcome: Outcome
) -> None:
    """Bag after bag; what is wrong with one stays its own."""
    bags = cases_of(slides.store_of, slides.case_of, by_case=scorer.unit == "case")
    done = set(outcome.there)
    missing = {name: own for name, own in bags.items() if not done.issuperset(own)}
    count = 0
    with ProgressReporter("heatmap", num_slides=sum(map(len, missing.values()))) as progress:
        for name, own in missing.items():
            try:
                _score_bag(config, scorer, slides, name, own, outcome)
            except (MstarError, OSError) as error:
                outcome.failed |= dict.fromkeys(
                    (slide for slide in own if slide not in done), str(error)
                )
            count += len(own)
            progress.update(slides_done=count, patches_done=outcome.patches)


def _score_bag(
    config: HeatmapConfig,
    scorer: Scorer,
    slides: AskedSlides,
    name: str,
    own: Sequence[str],
    outcome: Outcome,
) -> None:
    """Score the patches of a bag together, then write each of its slides."""
    read = []
    for slide in own:
        one = slides.store_of[slide].read(slide)
        require_coords(one.grid, slides.store_of[slide].slide_uri(slide), "heatmaps")
        if len(one.features):
            read.append(one)
        else:
            outcome.failed[slide] = "no patches: no tissue was found on it"
    if not read:
        return
    case = slides.case_of.get(own[0], name)
    scored = scorer.score(case, read, rna=slides.rna_of.get(case, ""))
    ends = np.cumsum([len(one.features) for one in read]).tolist()
    for one, end in zip(read, ends, strict=True):
        if one.grid.slide_id in outcome.there:
            continue
        part = slice(end - len(one.features), end)
        _write_slide(config, scorer, slides, one, scored, part, outcome)


def _write_slide(
    config: HeatmapConfig,
    scorer: Scorer,
    slides: AskedSlides,
    slide: SlideFeatures,
    scored: ScoredBag,
    part: slice,
    outcome: Outcome,
) -> None:
    name = slide.grid.slide_id
    layers = tuple(
        PatchScores.of(raw.kind, raw.values[part], raw.class_name) for raw in scored.layers
    )
    drawn = chosen_layers(layers, config.classes, scored.predicted)
    store = slides.store_of[name]
    scores = SlideScores.on(
        slide.grid,
        (*drawn, *(layer for layer in layers if layer not in drawn)),
        slide_uri=slides.uri_of.get(name, ""),
        made_by={"identity": _plain(scorer.identity), "features": store.root, **scored.facts},
    )
    options = ViewOptions(
        about=_about(scorer, scored),
        object_type=config.object_type,
        in_bounds=config.origin == "bounds",
        overlay=config.overlay_kind,
        k=config.k,
        cache_dir=config.run.cache_dir,
        cache_gb=config.run.cache_gb,
    )
    folder = slide_folder(config.out, name)
    outcome.notes[name] = write_views(folder, scores, slide.grid, options, drawn=drawn)
    outcome.made.append(name)
    outcome.patches += len(slide.features)
    outcome.pictures += [objects.join(folder, file_name(layer) + ".png") for layer in drawn[:1]]


def chosen_layers(
    layers: tuple[PatchScores, ...], classes: Sequence[str], predicted: str
) -> tuple[PatchScores, ...]:
    """The layers that are drawn: of every kind the one without a class, or of the chosen classes.

    The first of a kind where none is so.
    """
    if ALL_CLASSES in classes:
        return layers
    wanted = set(classes) or {predicted}
    drawn = []
    for kind in dict.fromkeys(layer.kind for layer in layers):
        own = [layer for layer in layers if layer.kind == kind]
        fit = [one for one in own if one.class_name in wanted or not one.class_name]
        drawn += fit or own[:1]
    return tuple(drawn)


def _about(scorer: Scorer, scored: ScoredBag) -> str:
    if "model" in scorer.identity:
        model = scorer.identity["model"]
        said = f", predicted {scored.predicted}" if scored.predicted else ""
        return f"{model['task']} by {model['head']} on {model['encoder']}{said}"
    minus = f" − {scorer.identity['minus']}" if scorer.identity["minus"] else ""
    return f"“{scorer.identity['text']}”{minus}"


def _write(config: HeatmapConfig, scorer: Scorer, outcome: Outcome) -> None:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["name", "reason"])
    writer.writerows(outcome.failed.items())
    objects.write_whole(objects.join(config.out, FAILURES), sink.getvalue().encode())
    record = {
        "config": to_dict(config),
        "identity": scorer.identity,
        "slides": sorted(outcome.made + outcome.there),
        "failed": outcome.failed,
        "notes": {slide: notes for slide, notes in outcome.notes.items() if notes},
        "mstar_version": __version__,
        "warning": RESEARCH_ONLY,
    }
    objects.write_whole(objects.join(config.out, RECORD), to_json(record).encode())


def _track(config: HeatmapConfig, tracker: Tracker, outcome: Outcome) -> None:
    counts = {"slides": len(outcome.made) + len(outcome.there), "failed": len(outcome.failed)}
    tracker.log_metrics({name: float(value) for name, value in counts.items()}, step=0)
    tracker.set_tags({"warning": RESEARCH_ONLY})
    if objects.is_local(config.out):
        for uri in outcome.pictures[:PICTURES_TRACKED]:
            path = objects.local_path(uri)
            tracker.log_artifact(Path(path), path.parent.name)


def _plan(config: HeatmapConfig, scorer: Scorer, slides: AskedSlides, outcome: Outcome) -> str:
    lines = [f"heatmap: {_what(scorer)}"]
    for kind, source in scorer.identity["methods"].items():
        lines.append(f"  {kind:<12} {source}")
    known = len(slides.store_of)
    lines.append(
        f"  slides       {known:,} with features, {len(outcome.there):,} of them done"
        + (
            f"; to be embedded where missing: {', '.join(slides.to_embed)}"
            if slides.to_embed
            else ""
        )
    )
    return "\n".join(lines)


def _what(scorer: Scorer) -> str:
    if "model" not in scorer.identity:
        return f"likeness to “{scorer.identity['text']}”"
    model, count = scorer.identity["model"], scorer.identity["averaged_over"]
    mean = f", mean of {count} models" if count > 1 else ""
    return f"{model['task']} by {model['head']} on {model['encoder']}{mean}"


def _say(config: HeatmapConfig, outcome: Outcome) -> None:
    print(f"  made         {len(outcome.made):,}; {len(outcome.failed):,} without")
    for name, reason in list(outcome.failed.items())[:SHOWN]:
        print(f"               {name}: {reason[:160]}")
    unseen = {note for notes in outcome.notes.values() for note in notes}
    for note in sorted(unseen)[:SHOWN]:
        print(f"  note         {note[:160]}")
    print(f"  output       {config.out}")
    print(f"  {RESEARCH_ONLY}")


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = to_dict(dict(identity))
    return plain
