"""Prompt files: the package's own fit their tasks; bad ones are refused with file and way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mstar.data.task_registry import read_task_registry
from mstar.data.tasks import Task
from mstar.downstream.language.prompts import PACKAGED, find_prompts, read_prompts
from mstar.errors import TableError

TASK = Task(task_id="t", kind="zero_shot", metric="macro_auc", class_names=("no", "yes"))
GOOD: dict[str, Any] = {
    "classes": {"yes": ["metastasis"], "no": ["normal node", "benign node"]},
    "templates": ["CLASSNAME.", "a slide of CLASSNAME"],
}


def written(folder: Path, content: Any, name: str = "t.json") -> str:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / name)


def test_every_task_of_text_has_prompts_of_its_classes() -> None:
    """Those of the list and of the older one, whatever they call a class."""
    seen = set()
    for name in ("mstar-97", "mstar-v1"):
        for task in read_task_registry(name).tasks:
            if task.kind in ("zero_shot", "few_shot"):
                found = find_prompts(task, "")
                assert len(found.synonyms) == len(task.class_names)
                assert all(len(own) >= 3 for own in found.synonyms)
                assert len(found.templates) >= 8
                seen.add(task.task_id)
    assert seen == set(PACKAGED)


def test_json_csv_and_the_authors_layout_say_the_same(tmp_path: Path) -> None:
    rows = ["kind,class,text"]
    rows += [f"synonym,{c},{s}" for c, own in GOOD["classes"].items() for s in own]
    rows += [f"template,,{t}" for t in GOOD["templates"]]
    theirs = {"0": {"classnames": GOOD["classes"], "templates": GOOD["templates"]}}
    uris = (
        written(tmp_path, GOOD),
        written(tmp_path, "\n".join(rows), "t.csv"),
        written(tmp_path, theirs, "theirs.json"),
    )
    first, *others = (read_prompts(uri, TASK) for uri in uris)
    assert all(other.digest == first.digest for other in others)
    texts = [sentence.text for sentence in first.sentences()]
    assert texts == [
        *("normal node.", "a slide of normal node", "benign node.", "a slide of benign node"),
        *("metastasis.", "a slide of metastasis"),
    ]
    assert [sentence.class_code for sentence in first.sentences()] == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": {"no": ["a"], "yes": []}}, "class yes: expected a synonym or more, got none"),
        ({"classes": {"no": ["a"]}}, "class yes: expected a synonym or more, got none"),
        ({"classes": {**GOOD["classes"], "maybe": ["b"]}}, "got maybe"),
        ({"classes": {"no": ["a"], "yes": ["A"]}}, "synonyms of its own (no has it)"),
        ({"classes": {"no": ["a", "a"], "yes": ["b"]}}, "each text once, got 'a' twice"),
        ({"classes": {"no": [" ."], "yes": ["b"]}}, "a letter or digit"),
        ({"classes": {"no": "a", "yes": ["b"]}}, "a list of texts"),
        ({"templates": ["no place"]}, "expected CLASSNAME in each"),
        ({"templates": []}, "templates"),
        ({"classes": ["no", "yes"]}, "expected {"),
    ],
)
def test_bad_prompts_name_file_field_and_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    uri = written(tmp_path, GOOD | change)
    with pytest.raises(TableError) as caught:
        read_prompts(uri, TASK)
    assert uri in str(caught.value)
    assert said in str(caught.value)


def test_bad_rows_of_a_csv_name_the_row(tmp_path: Path) -> None:
    uri = written(tmp_path, "kind,class,text\nsynonym,,a\ntemplate,,CLASSNAME\n", "t.csv")
    with pytest.raises(TableError, match=r"t\.csv.*row 1.*class"):
        read_prompts(uri, TASK)


def test_a_folder_with_both_kinds_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"Write t\.json"):
        find_prompts(TASK, str(tmp_path))
    written(tmp_path, GOOD)
    assert find_prompts(TASK, str(tmp_path)).templates == tuple(GOOD["templates"])
    written(tmp_path, "kind,class,text\n", "t.csv")
    with pytest.raises(TableError, match="got both"):
        find_prompts(TASK, str(tmp_path))
    with pytest.raises(TableError, match="no such file"):
        find_prompts(TASK, str(tmp_path / "none.json"))
