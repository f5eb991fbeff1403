"""Slide ids name files: which are fit for that, and how the others are recorded all the same."""

import hashlib
from urllib.parse import quote

from mstar.errors import ManifestError

MAX_STEP_BYTES = 200  # of the 255 that file systems allow; suffixes are added
_RECORD = ".json"


def check_slide_id(slide_id: str) -> None:
    """Refuse an id that cannot name a file below an output folder.

    Raises:
        ManifestError: says what is wrong with it.
    """
    problem = slide_id_problem(slide_id)
    if problem is not None:
        raise ManifestError(f"slide_id {slide_id!r}: {problem}. Change slide_id in the manifest.")


def slide_id_problem(slide_id: str) -> str | None:
    """Why an id cannot name a file, None when it can."""
    if not slide_id.strip():
        return "it is empty"
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in slide_id):
        return "it holds a control character"
    if any(0xD800 <= ord(char) < 0xE000 for char in slide_id):
        return "it is not valid Unicode"
    if "\\" in slide_id:
        return "it holds a backslash"
    if slide_id.startswith("/"):
        return "it is absolute"
    for step in slide_id.split("/"):
        if (problem := _step_problem(step)) is not None:
            return problem
    return None


def quoted(key: str) -> str:
    """Any text as one file name: equal only for equal texts, never a path, never hidden."""
    name = quote(key.encode(errors="surrogatepass"), safe=" ")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) <= MAX_STEP_BYTES and name:
        return name
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:24]
    return f"{name[:100]}%%{digest}"  # quoting makes no %%, so no short name is like this


def record_name(slide_id: str) -> str:
    """The relative name of a slide's JSON record: the id itself where it is fit, else quoted."""
    fit = slide_id_problem(slide_id) is None and "%" not in slide_id
    # a folder `x.json` would clash with the record of `x`
    clashes = any(step.endswith(_RECORD) for step in slide_id.split("/")[:-1])
    return (slide_id if fit and not clashes else quoted(slide_id)) + _RECORD


def _step_problem(step: str) -> str | None:
    if step in ("", ".", ".."):
        return f"{step!r} is not allowed between slashes"
    if step.startswith("."):
        return "a name that starts with a dot is hidden, and would not be listed"
    if len(step.encode()) > MAX_STEP_BYTES:
        return f"it has a name of more than {MAX_STEP_BYTES} bytes"
    return None
