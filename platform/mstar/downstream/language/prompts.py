"""Prompt files: what each class of a task is called, and the sentences that it is put into.

JSON, `<task_id>.json`:

    {"classes":   {"normal": ["normal lymph node", "benign lymph node"],
                   "metastasis": ["metastatic carcinoma in a lymph node"]},
     "templates": ["CLASSNAME.", "an H&E image of CLASSNAME."]}

CSV, `<task_id>.csv`, the same as rows:

    kind,class,text
    synonym,normal,normal lymph node
    synonym,metastasis,metastatic carcinoma in a lymph node
    template,,an H&E image of CLASSNAME.

The names of classes are those of the task row, every one of them and no other. Every template holds
CLASSNAME. A class's prompts are all of its synonyms in all templates. The authors' layout
`{"0": {"classnames": {...}, "templates": [...]}}` is read too.

`downstream/language/prompts/` has a file for each zero-shot task of the list, written for this
platform; `PACKAGED` says which tasks take which.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mstar.config import fingerprint
from mstar.data.tables import Column, bad_cell, read_table
from mstar.data.tasks import Task
from mstar.errors import TableError
from mstar.storage import objects

PLACEHOLDER = "CLASSNAME"
_FOLDER = Path(__file__).with_name("prompts")
_SUFFIXES = (".json", ".csv")
_COLUMNS = (
    Column(name="kind", allowed=("synonym", "template")),
    Column(name="class", nullable=True),
    Column(name="text", nullable=True),
)
_V1 = ("camelyon", "panda", "ubc_ocean", "bcnb_er", "bcnb_pr", "bcnb_her2")
PACKAGED = {
    task_id: name
    for name in _V1
    for task_id in (f"{name}_zero_shot", f"v1_{name}_zero_shot", f"v1_{name}_few_shot")
}
"""Task → the file of the package, without its ending."""

_SAME = (frozenset({"metastasis", "tumor", "tumour"}),)  # names of one class in several lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One sentence: of a class, by position, with which synonym and template, by position."""

    class_code: int
    synonym: int
    template: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The prompts of a task.

    uri: of the file.
    synonyms: of each class, in the order of the class codes.
    """

    uri: str
    class_names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of all that is said."""
        return fingerprint([self.class_names, self.synonyms, self.templates])

    def sentences(self) -> tuple[Prompt, ...]:
        """All prompts: class by class, synonym by synonym, template by template."""
        return tuple(
            Prompt(
                class_code=code,
                synonym=number,
                template=place,
                text=template.replace(PLACEHOLDER, synonym),
            )
            for code, own in enumerate(self.synonyms)
            for number, synonym in enumerate(own)
            for place, template in enumerate(self.templates)
        )


def find_prompts(task: Task, where: str) -> Prompts:
    """The prompts of a task: of the user's folder or file, else of the package.

    Raises:
        TableError: there are none, or they do not fit the task.
    """
    uri = _own_file(task, where) if where else None
    if uri is None:
        name = PACKAGED.get(task.task_id)
        if name is None:
            raise TableError(
                f"task {task.task_id}: no prompts. Write {task.task_id}.json with its classes "
                f"({', '.join(task.class_names)}) as synonyms and templates, and give its folder "
                "with --prompts (platform/docs/zero-shot.md)."
            )
        uri = str(_FOLDER / f"{name}.json")
    return read_prompts(uri, task)


def read_prompts(uri: str, task: Task) -> Prompts:
    """A prompt file, held against the task's classes.

    Raises:
        TableError: a class without synonym, a class too many, a template without CLASSNAME, a
            text that is empty or there twice.
    """
    classes, templates = _read_csv(uri) if uri.endswith(".csv") else _read_json(uri)
    named = _of_task(uri, classes, task)
    synonyms = tuple(_texts(uri, f"class {name}", named[name]) for name in task.class_names)
    _refuse_shared(uri, task.class_names, synonyms)
    for template in _texts(uri, "templates", templates):
        if PLACEHOLDER not in template:
            raise _wrong(uri, "templates", f"{PLACEHOLDER} in each", repr(template))
    return Prompts(
        uri=uri,
        class_names=task.class_names,
        synonyms=synonyms,
        templates=_texts(uri, "templates", templates),
    )


def prompt_classes(uri: str) -> tuple[str, ...]:
    """The classes of a prompt file, in its order, whatever task it is for.

    Raises:
        TableError: it is no prompt file.
    """
    classes, _ = _read_csv(uri) if uri.endswith(".csv") else _read_json(uri)
    return tuple(classes)


def _own_file(task: Task, where: str) -> str | None:
    if where.endswith(_SUFFIXES):
        return where
    found = [objects.join(where, task.task_id + suffix) for suffix in _SUFFIXES]
    there = [uri for uri in found if objects.exists(uri)]
    if len(there) > 1:
        raise TableError(f"{where}: expected one file of {task.task_id}, got both. Remove one.")
    return there[0] if there else None


def _read_json(uri: str) -> tuple[Mapping[str, Any], Sequence[Any]]:
    try:
        found = json.loads(objects.read_bytes(uri))
    except FileNotFoundError as error:
        raise TableError(f"{uri}: no such file. Correct --prompts.") from error
    except ValueError as error:
        raise TableError(f"{uri}: expected JSON, got {error}. Correct the file.") from error
    if isinstance(found, dict) and isinstance(found.get("0"), dict):  # the authors' layout
        found = found["0"]
    classes = found.get("classes", found.get("classnames")) if isinstance(found, dict) else None
    templates = found.get("templates") if isinstance(found, dict) else None
    if not isinstance(classes, dict) or not isinstance(templates, list):
        raise _wrong(uri, "file", '{"classes": {name: [synonyms]}, "templates": […]}', "another")
    return classes, templates


def _read_csv(uri: str) -> tuple[Mapping[str, Any], Sequence[Any]]:
    classes: dict[str, list[str]] = {}
    templates: list[str] = []
    for row, cells in enumerate(read_table(uri, _COLUMNS).to_pylist()):
        if not cells["text"]:
            way_out = "Fill it in or drop the row."
            raise bad_cell(uri, row, "text", "a synonym or template", cells["text"], way_out)
        if cells["kind"] == "template":
            templates.append(cells["text"])
        elif not cells["class"]:
            raise bad_cell(uri, row, "class", "a class", cells["class"], "Name its class.")
        else:
            classes.setdefault(cells["class"], []).append(cells["text"])
    return classes, templates


def _of_task(uri: str, classes: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The file's classes under the names of the task; all of them, and no other."""
    aliases = {other: name for name in task.class_names for same in _SAME if name in same
               for other in same}  # fmt: skip
    aliases |= dict(task.label_aliases)
    named = {}
    for name, synonyms in classes.items():
        own = name if name in task.class_names else aliases.get(name, name)
        if own not in task.class_names:
            expected = f"the classes of {task.task_id} ({', '.join(task.class_names)})"
            raise _wrong(uri, "classes", expected, name)
        named[own] = synonyms
    for name in task.class_names:
        if not named.get(name):
            raise _wrong(uri, f"class {name}", "a synonym or more", "none")
    return named


def _texts(uri: str, field: str, found: Any) -> tuple[str, ...]:
    """Texts that say something, each once."""
    if not isinstance(found, list) or not found:
        raise _wrong(uri, field, "a list of texts", repr(found))
    for text in found:
        if not isinstance(text, str) or not any(mark.isalnum() for mark in text):
            raise _wrong(uri, field, "texts that hold a letter or digit", repr(text))
    twice = [text for text, count in Counter(found).items() if count > 1]
    if twice:
        raise _wrong(uri, field, "each text once", f"{twice[0]!r} twice")
    return tuple(found)


def _refuse_shared(uri: str, names: Sequence[str], synonyms: Sequence[Sequence[str]]) -> None:
    owners: dict[str, str] = {}
    for name, own in zip(names, synonyms, strict=True):
        for text in own:
            other = owners.setdefault(text.casefold(), name)
            if other != name:
                raise _wrong(uri, f"class {name}", f"synonyms of its own ({other} has it)", text)


def _wrong(uri: str, field: str, expected: str, got: str) -> TableError:
    return TableError(f"{uri}: {field}: expected {expected}, got {got}. Correct the prompts.")
