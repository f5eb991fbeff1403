"""A report generator as something that answers: `mstar report write` writes, this reads.

<out>/reports/cases.csv      the cases asked for
<out>/reports/texts/, reports.csv, as `mstar report write` leaves them
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mstar.data.cases import Case, write_cases
from mstar.downstream.model_files import SUFFIX, model_digest
from mstar.downstream.report_generation import job as report_write
from mstar.downstream.report_generation.job_config import ReportWriteConfig
from mstar.downstream.report_generation.writing import Writer, find_writers, load_writer
from mstar.errors import MstarError
from mstar.predict.config import PredictConfig
from mstar.predict.models import Answer, Asked, Model, needed, stamp_of
from mstar.storage import objects
from mstar.storage.ids import quoted

REPORTS, UNKNOWN = "reports", "unknown"


def open_reports(config: PredictConfig, record: Mapping[str, Any]) -> Model:
    """The first model of the study writes, as in `mstar report write`."""
    is_file = config.model.endswith(SUFFIX)
    writer: Writer = load_writer(config.model) if is_file else find_writers(config.model)[0]

    def answers(cases: Sequence[Asked]) -> Iterator[Answer]:
        sizes = [_size(asked) for asked in cases]
        pairs = list(zip(cases, sizes, strict=True))
        _write(config, [asked for asked, size in pairs if isinstance(size, int)])
        for asked, size in pairs:
            if isinstance(size, int):
                yield {"num_patches": size, **_columns(config, asked)}
            else:
                yield size

    return Model(
        stamp=stamp_of(record["study"], [model_digest(writer.fit)]),
        unit=needed(record, "unit", config.model),
        made_by=needed(record, "made_by", config.model),
        uris=(config.model,),
        answers=answers,
        notes={"reports": objects.join(config.out, REPORTS, "reports.csv")},
    )


def _size(asked: Asked) -> int | MstarError:
    """Its patches, or why there are none: the writer takes all of its cases or none."""
    try:
        return len(asked.bag())
    except MstarError as error:
        return error


def _write(config: PredictConfig, cases: Sequence[Asked]) -> None:
    if not cases:
        return
    folder = objects.join(config.out, REPORTS)
    table = objects.join(folder, "cases.csv")
    write_cases(
        table,
        [
            Case(case_id=asked.name, cancer_type=UNKNOWN, slides=tuple(asked.store_of))
            for asked in cases
        ],
    )
    roots = {store.root for asked in cases for store in asked.store_of.values()}
    report_write.run(
        ReportWriteConfig(
            model=config.model,
            features=",".join(sorted(roots)),
            cases=table,
            out=folder,
            device=config.device,
            cache_dir=config.run.cache_dir,
            tracking=False,
        )
    )


def _columns(config: PredictConfig, asked: Asked) -> dict[str, Any]:
    uri = objects.join(config.out, REPORTS, "texts", f"{quoted(asked.name)}.json")
    found = json.loads(objects.read_bytes(uri))
    names = ("text", "tokens", "log_probability", "ended")
    return {"report" if name == "text" else name: found[name] for name in names}
