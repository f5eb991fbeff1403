"""A small world for tasks of text: a cohort with reports and RNA, features in the space of text.

The encoders are untrained, and features are planted by them: a slide's patches are noise, and some
are the vector of its report or its class's text. What a method finds is therefore known.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from mstar.data.cases import Case, write_cases
from mstar.data.report_tokens import ReportTokenizer
from mstar.data.reports import Report, write_reports
from mstar.data.rna.store import FACTS, GENES, ROWS, VALUES
from mstar.data.tables import write_table
from mstar.data.task_registry import read_task_registry
from mstar.downstream.language.encoders import TextSide
from mstar.downstream.language.prompts import read_prompts
from mstar.downstream.language.zero_shot import class_vectors, wordings_of
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.gene_encoder import GeneEncoder, GeneEncoderConfig
from mstar.models.stage1_files import save_aggregator, save_gene_encoder, save_text_encoder
from mstar.models.text_encoder import TextEncoder, TextEncoderConfig, pretrained_text_encoder
from mstar.pretrain.small_text_encoder import write_small_text_encoder
from support.planted_tasks import write_store

DIM = 48
GENES_N = 12
WORDS = (
    "margin clear tumour necrosis gland nucleus stroma duct vessel node lymph oedema fibrous cyst "
    "papillary serous mucinous solid sheet colour pale dark round spindle"
).split()
PARTS = ("train", "train", "val", "test", "test")


@dataclass(frozen=True, kw_only=True)
class World:
    """Where everything lies: F holds features with planted classes, FR with planted reports."""

    root: Path
    cases: int

    def copied(self, folder: Path) -> World:
        """A copy that a test may change."""
        return replace(self, root=Path(shutil.copytree(self.root, folder)))

    @property
    def sweep(self) -> dict[str, Any]:
        """Settings of a sweep over it."""
        return {
            "labels": f"{self.root}/labels",
            "features": (f"enc={self.root}/F",),
            "own": (f"{self.root}/own.csv",),
            "cohort": f"{self.root}/C",
            "stage1": f"{self.root}/S1",
            "stage2": f"{self.root}/S2",
            "prompts": f"{self.root}/prompts",
            "heads": ("linear",),
            "tasks": ("zero", "pairs", "few"),
            "cache_dir": f"{self.root}/cache",
            "out": f"{self.root}/R",
            "tracking": False,
            "figures": False,
        }


def write_stage1(folder: Path, *, features: int = DIM, seed: int = 0) -> Path:
    """Untrained encoders as `mstar stage1` leaves them."""
    vocabulary = " ".join([*WORDS, "CLASSNAME", "with", *map(str, range(100))])
    bert = write_small_text_encoder(
        folder / "bert", [vocabulary] * 3, hidden=32, layers=1, heads=2, seed=seed
    )
    config = TextEncoderConfig(name=str(bert), output_dim=DIM, gradient_checkpointing=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = apart(pretrained_text_encoder(config), bert)
        aggregator = Aggregator(
            AggregatorConfig(input_dim=features, dim=DIM, heads=4, landmarks=4, mode="masked")
        )
        settings = GeneEncoderConfig(
            num_genes=GENES_N, dim=16, heads=2, head_dim=8, random_features=8, output_dim=DIM,
            gene_vectors="learned",
        )  # fmt: skip
        genes = GeneEncoder(settings, None)
    provenance = {"binning": {"method": "floor_clip", "num_bins": 5, "bin_width": 1.0, "edges": []}}
    save_text_encoder(str(folder), text)
    save_aggregator(str(folder), aggregator)
    save_gene_encoder(str(folder), genes, gene_names(), provenance=provenance)
    shutil.copytree(bert, folder / "tokenizer", ignore=shutil.ignore_patterns("model*"))
    (folder / "stage1.json").write_text(json.dumps({"tokenizer": {"max_tokens": 64}}))
    return folder


def apart(encoder: TextEncoder, bert: Path) -> TextEncoder:
    """The encoder with the mean of its texts taken off: untrained texts are nearly alike."""
    tokenizer, rng = ReportTokenizer(bert, max_tokens=64), np.random.default_rng(0)
    batch = tokenizer.encode_batch([report_of(rng, at) for at in range(60)], trim=True)
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    with torch.no_grad():
        encoder.proj_text.bias -= encoder.eval()(ids, mask).mean(0)
    return encoder


def write_stage2(folder: Path, *, features: int = DIM) -> Path:
    """A projection that changes nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"proj.weight": torch.eye(DIM, features), "proj.bias": torch.zeros(DIM)}
    save_file(state, folder / "projection.safetensors")
    return folder


def gene_names() -> list[str]:
    """Of the gene encoder and the expression."""
    return [f"G{number}" for number in range(GENES_N)]


def write_world(root: Path, *, cases: int = 40, strength: float = 3.0, seed: int = 0) -> World:
    """Write everything; cases alternate between two classes and four cancer types."""
    world = World(root=root, cases=cases)
    side = TextSide(str(write_stage1(root / "S1")))
    write_stage2(root / "S2")
    rng = np.random.default_rng(seed)
    reports = {case_id(at): report_of(rng, at) for at in range(cases)}
    _write_cohort(root / "C", reports, cases)
    _write_tasks(root, cases)
    own = read_task_registry(own=[f"{root}/own.csv"]).get("zero")
    prompts = read_prompts(f"{root}/prompts/zero.json", own)
    ids = side.tokenizer.token_ids([s.text for s in prompts.sentences()])
    texts = class_vectors(side.vectors(ids), wordings_of(prompts, seed=0)[:1])[0]
    said = side.vectors(side.tokenizer.token_ids(list(reports.values())))
    for name, vectors, chosen in (("F", texts, lambda at: at % 2), ("FR", said, lambda at: at)):
        slides = {}
        for at in range(cases):
            told = vectors[chosen(at)]
            for number in range(1 + at % 2):
                rows = rng.standard_normal((int(rng.integers(60, 90)), DIM)) / np.sqrt(DIM)
                rows[:20] += strength * told
                slides[f"{case_id(at)}-{number}"] = rng.permutation(rows).astype(np.float16)
        write_store(root / name, slides)
    return world


def case_id(at: int) -> str:
    """Of a case by its number."""
    return f"case{at:03d}"


def report_of(rng: np.random.Generator, at: int) -> str:
    """Words of no meaning, and the case's number."""
    return " ".join([*rng.choice(WORDS, 14), str(at)])


def _write_cohort(folder: Path, reports: dict[str, str], cases: int) -> None:
    made = [
        Case(
            case_id=case_id(at),
            cancer_type=("BRCA", "LUAD")[at // 2 % 2],
            slides=tuple(f"{case_id(at)}-{n}" for n in range(1 + at % 2)),
            report=case_id(at) if at % 10 != 9 else None,
            rna=case_id(at) if at % 5 != 4 else None,
            split=None,
        )
        for at in range(cases)
    ]
    folder.mkdir(parents=True)
    write_cases(f"{folder}/cases.csv", made)
    write_reports(f"{folder}/reports.csv", {c: Report(text=t) for c, t in reports.items()})
    store = folder / "expression"
    store.mkdir()
    rows = [one.rna for one in made if one.rna]
    values = np.random.default_rng(1).exponential(2.0, (len(rows), GENES_N)).astype(np.float32)
    np.save(store / VALUES, values)
    write_table(str(store / ROWS), pa.table({"case_id": rows}))
    write_table(str(store / GENES), pa.table({"gene": gene_names()}))
    facts = {"digest": "d", "unit": "rsem", "counts": {"zero_cases": []}, "gene_vectors": False}
    (store / FACTS).write_text(json.dumps({"schema_version": 1, **facts}))


def _write_tasks(root: Path, cases: int) -> None:
    (root / "own.csv").write_text(
        "task_id,kind,metric,classes,split_policy\n"
        "zero,zero_shot,macro_auc,no|yes,test_fold\n"
        "pairs,retrieval,recall_at_k,,test_fold\n"
        "few,few_shot,macro_auc,no|yes,own\n"
    )
    labels = root / "labels"
    labels.mkdir()
    for name in ("zero", "pairs", "few"):
        lines = ["case_id,slides,label,split,data_source"]
        for at in range(cases):
            slides = ";".join(f"{case_id(at)}-{n}" for n in range(1 + at % 2))
            label = case_id(at) if name == "pairs" else ("no", "yes")[at % 2]
            lines.append(f"{case_id(at)},{slides},{label},{PARTS[at // 2 % 5]},generated")
        (labels / f"{name}.csv").write_text("\n".join(lines) + "\n")
    prompts = root / "prompts"
    prompts.mkdir()
    said = {
        "classes": {"no": ["pale stroma", "fibrous oedema"], "yes": ["solid gland", "dark duct"]},
        "templates": ["CLASSNAME.", "tumour with CLASSNAME"],
    }
    for name in ("zero", "few"):
        (prompts / f"{name}.json").write_text(json.dumps(said))
