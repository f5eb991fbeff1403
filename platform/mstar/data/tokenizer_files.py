"""The files of a tokenizer, found without a network where that is possible.

A local folder, a folder in an object store (`s3://…`, a few small files), or a hub id: first the
hub's local cache, then the hub. A cached copy is used as it is; `org/name@revision` pins another.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

from mstar.errors import WeightsError
from mstar.storage import objects

DEFAULT_TOKENIZER = "dmis-lab/biobert-base-cased-v1.2"
VOCABULARIES = ("tokenizer.json", "vocab.txt")  # without one, transformers makes up an empty one
FILES = (*VOCABULARIES, "config.json", "tokenizer_config.json", "special_tokens_map.json")


@contextmanager
def tokenizer_folder(name: str) -> Iterator[Path]:
    """A local folder with the tokenizer's files, there for as long as the block runs.

    Raises:
        WeightsError: neither a folder, nor in the cache, nor to be had; says how to bring it.
    """
    if not objects.is_local(name):
        with tempfile.TemporaryDirectory() as temporary:
            yield _checked(_copy(name, Path(temporary)), name)
        return
    folder = objects.local_path(name)
    if folder.is_dir():
        yield _checked(folder, name)
    elif name.startswith(("/", ".", "~", "file://")) or name.count("/") != 1:
        raise WeightsError(
            f"{name}: no such folder, and no hub id (org/name) either. Give the folder that holds "
            "vocab.txt or tokenizer.json."
        )
    else:
        yield _checked(_from_hub(name), name)


def _checked(folder: Path, name: str) -> Path:
    if not _has_vocabulary(folder):
        raise WeightsError(
            f"{name}: expected one of {', '.join(VOCABULARIES)}, got neither. Download the "
            "tokenizer's files whole."
        )
    return folder


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / file).is_file() for file in VOCABULARIES)


def _copy(uri: str, folder: Path) -> Path:
    for file in FILES:
        source = objects.join(uri, file)
        if objects.exists(source):
            (folder / file).write_bytes(objects.read_bytes(source))
    return folder


def _from_hub(name: str) -> Path:
    repo, _, revision = name.partition("@")
    try:
        cached = Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
        if _has_vocabulary(cached):
            return cached
    except (OSError, HFValidationError):  # not in the cache
        pass
    try:
        files = list(FILES)
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=files))
    except (OSError, HTTPError, HFValidationError) as error:
        raise WeightsError(
            f"{name}: not in the model hub's local cache, not to be had from the hub "
            f"({type(error).__name__}), and no folder of that name. On a machine with access: "
            f"`hf download {repo} --local-dir FOLDER`; copy FOLDER here and give its path or s3:// "
            "address."
        ) from error
