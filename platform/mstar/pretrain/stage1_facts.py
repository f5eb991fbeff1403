"""What a stage-1 output says of itself.

`run.json` has the settings and is written before the first step: another run is refused by them.
`stage1.json` says what was exported: settings, digests of the inputs, counts, validation, step;
`complete` once the run has ended.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import mstar
from mstar.config import differences, to_dict
from mstar.data.report_tokens import ReportTokenizer
from mstar.errors import ConfigError
from mstar.pretrain.batch_plan import Guarantee
from mstar.pretrain.stage1_cases import Sources, Stage1Cases, TrainCase
from mstar.pretrain.stage1_config import Stage1Config
from mstar.pretrain.stage1_validate import Validation
from mstar.storage import objects

RUN_FILE, FACTS_FILE = "run.json", "stage1.json"


def read_json(out: str, name: str) -> dict[str, Any] | None:
    """A JSON file of an output, None where there is none."""
    try:
        found: dict[str, Any] = json.loads(objects.read_bytes(objects.join(out, name)))
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_json(out: str, name: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file of an output whole."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    objects.write_whole(objects.join(out, name), text.encode())


def refuse_other_run(config: Stage1Config) -> None:
    """Raises ConfigError when the output is that of a run with other settings, and names them."""
    found = read_json(config.out, RUN_FILE)
    if found is None or found["identity"] == config.identity:
        return
    lines = "\n  ".join(
        line.replace(": expected ", ": there ").replace(", found ", ", here ")
        for line in differences(found["identity"], config.identity)
    )
    raise ConfigError(
        f"{config.out}: holds a stage 1 with other settings:\n  {lines}\n"
        "Give another --out, or repeat its settings."
    )


def claim(config: Stage1Config) -> None:
    """Write down whose output this is.

    Raises:
        ConfigError: it is another run's.
    """
    refuse_other_run(config)
    if read_json(config.out, RUN_FILE) is None:
        content = {"identity": config.identity, "config": to_dict(config)}
        write_json(config.out, RUN_FILE, {**content, "mstar": mstar.__version__})


def input_digests(
    cases: Stage1Cases, sources: Sources, tokenizer: ReportTokenizer | None, start: str = ""
) -> dict[str, str]:
    """What must not change between two attempts of a run; start: of the encoders it began with."""
    return ({"init_from": start} if start else {}) | {
        "cases": cases_digest(cases.train, cases.val),
        "splits": cases.split_digest,
        "reports": sources.reports.digest if sources.reports is not None else "",
        "tokenizer": tokenizer.digest if tokenizer is not None else "",
        "expression": sources.expression.digest if sources.expression is not None else "",
        "features": sources.bags.store.fingerprint if sources.bags is not None else "",
    }


def cases_digest(*parts: Sequence[TrainCase]) -> str:
    """Names the cases of every part, with their types, slides and modalities."""
    rows = [
        [one.case.case_id, one.case.cancer_type, list(one.case.slides), sorted(one.modalities)]
        for part in (*parts,)
        for one in part
    ]
    lengths = [len(part) for part in parts]
    return hashlib.sha256(json.dumps([lengths, rows]).encode()).hexdigest()


def facts_of(
    config: Stage1Config,
    cases: Stage1Cases,
    digests: Mapping[str, str],
    guaranteed: Guarantee,
    *,
    num_steps: int,
) -> dict[str, Any]:
    """What the exports and the tracked run say of where they come from."""
    return {
        "config": to_dict(config),
        "fingerprint": config.fingerprint,
        "inputs": dict(digests),
        "train_cases": len(cases.train),
        "val_cases": len(cases.val),
        "held_out_cases": cases.held_out,
        "cases_with_too_few_modalities": cases.too_few,
        "bad_inputs": [to_dict(one) for one in cases.bad],
        "cancers": list(cases.cancers),
        "every_batch_holds": {
            "cancers_with_two_cases": guaranteed.cancers,
            **{
                f"{'-'.join(pair)}_pairs": n
                for pair, n in guaranteed.pairs.items()
                if set(pair) <= config.on
            },
        },
        "steps": num_steps,
    }


def validation_facts(found: Validation | None) -> dict[str, Any]:
    """The metrics of a validation, and its recalls with their intervals and yardsticks."""
    if found is None:
        return {"validation": {}, "retrieval": {}}
    return {
        "validation": dict(found.metrics),
        "retrieval": {name: to_dict(one) for name, one in found.directions.items()},
    }
