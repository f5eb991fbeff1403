"""What rank 0 leaves behind: the selected encoders, the log of steps, pictures, the tracked run."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mstar.config import to_dict
from mstar.data.report_tokens import ReportTokenizer
from mstar.data.tokenizer_files import FILES, tokenizer_folder
from mstar.models.multimodal import MultimodalModel
from mstar.pretrain.stage1_cases import BadInput
from mstar.pretrain.stage1_config import Stage1Config
from mstar.pretrain.stage1_facts import FACTS_FILE, read_json, validation_facts, write_json
from mstar.pretrain.stage1_figures import curves, retrieval_matrix
from mstar.pretrain.stage1_model import export
from mstar.pretrain.stage1_validate import Validation
from mstar.pretrain.stage1_watch import Stage1Watch
from mstar.storage import objects
from mstar.training.run_log import RunLog
from mstar.training.sessions import TrainState
from mstar.training.tracker import NullTracker, Tracker

log = logging.getLogger("mstar.stage1")

TOKENIZER_FOLDER = "tokenizer"
CURVES_FILE, MATRIX_FILE = "curves.png", "retrieval.png"


@dataclass(slots=True, kw_only=True)
class Exporter:
    """Writes an output; on other ranks than 0 it has no log and is not asked to.

    facts: what stays the same throughout the run.
    history: the numbers of every step and validation so far, those of former attempts included.
    """

    config: Stage1Config
    facts: Mapping[str, Any]
    genes: tuple[str, ...]
    tokenizer: ReportTokenizer | None
    run_log: RunLog | None
    tracker: Tracker = field(default_factory=NullTracker)
    history: list[dict[str, float]] = field(default_factory=list)

    def record(self, step: int, metrics: Mapping[str, float], watch: Stage1Watch) -> None:
        """A line in the log of steps, and a warning for every failure signature seen."""
        assert self.run_log is not None
        self.history.append({"step": step, **metrics})
        self.run_log.append(step, metrics)
        for text in watch.look(step, metrics):
            log.warning("%s", text)
            self.tracker.set_tags({"mstar.warning": text})
        score = metrics.get(f"val.{self.config.select_on}")
        if score is not None:
            name = self.config.select_on
            self.run_log.say(f"stage1: validated at step {step:,}: {name} {score:.3f}")

    def keep(
        self,
        model: MultimodalModel,
        step: int,
        found: Validation | None,
        bad: Iterable[BadInput],
        *,
        selected_by: str = "",
    ) -> None:
        """Export the encoders of a new best; `stage1.json`, written last, says of which step."""
        facts = {
            **self.facts,
            "step": step,
            "selected_by": selected_by or f"highest val.{self.config.select_on}",
            "tokenizer": self._keep_tokenizer(),
            "logit_scale": float(model.logit_scale.log_scale.detach().exp()),
            **validation_facts(found),
        }
        short = {key: value for key, value in facts.items() if key != "retrieval"}
        export(model, self.config.out, genes=self.genes, provenance=short)
        write_json(
            self.config.out,
            FACTS_FILE,
            {**facts, "found_bad": [to_dict(one) for one in bad], "complete": False},
        )
        if found is not None and found.vectors is not None and found.directions:
            assert self.run_log is not None
            cancers = tuple(self.facts["cancers"])
            retrieval_matrix(found, cancers, self.run_log.folder / MATRIX_FILE)

    def finish(
        self,
        model: MultimodalModel,
        state: TrainState,
        found: Validation | None,
        bad: Iterable[BadInput],
    ) -> None:
        """Pictures, the last word to the tracker, and encoders where nothing was selected."""
        assert self.run_log is not None
        bad = list(bad)
        if state.best is None:
            self.keep(model, state.step, found, bad, selected_by="none: the last step")
        facts = read_json(self.config.out, FACTS_FILE)
        assert facts is not None, "encoders have been exported"
        facts |= {
            "found_bad": [to_dict(one) for one in bad],
            "steps_done": state.step,
            "complete": True,
        }
        curves(self.history, self.run_log.folder / CURVES_FILE)
        for name in (CURVES_FILE, MATRIX_FILE):
            if (self.run_log.folder / name).exists():
                self.tracker.log_artifact(self.run_log.folder / name)
        self.tracker.log_text(json.dumps(facts, indent=1, sort_keys=True), FACTS_FILE)
        self.run_log.say(f"stage1: {self.tracker.finish('FINISHED')}")
        self.run_log.publish()
        write_json(self.config.out, FACTS_FILE, facts)  # last: from here on a rerun does nothing

    def _keep_tokenizer(self) -> dict[str, Any]:
        """Copy the tokenizer's files beside the text encoder, so that it needs nothing else."""
        if self.tokenizer is None:
            return {}
        target = objects.join(self.config.out, TOKENIZER_FOLDER)
        with tokenizer_folder(self.tokenizer.name) as folder:
            names = [name for name in FILES if (folder / name).is_file()]
            for name in names:
                objects.put_file(folder / name, objects.join(target, name))
        return {
            "folder": TOKENIZER_FOLDER,
            "files": names,
            "digest": self.tokenizer.digest,
            "max_tokens": self.tokenizer.max_tokens,
        }
