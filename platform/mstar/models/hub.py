"""Weights from the Hugging Face hub, or from its local cache when the hub cannot be reached.

The token is read by the hub's own library from `HF_TOKEN` (or its login file) and never seen here.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of whichever HTTP library this version uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mstar.errors import WeightsError

PREFERRED = ("model.safetensors", "pytorch_model.bin")  # best first
ChooseFile = Callable[[Iterable[str], str], str]


def fetch_from_hub(repo: str, choose_file: ChooseFile) -> tuple[Path, str]:
    """Download the weights of `org/name[@revision]`, or find them in the hub's local cache.

    Returns:
        The file, and `org/name@commit`, which names the same content for good.

    Raises:
        WeightsError: no such model, no access, or neither hub nor cache has it; says what to do.
    """
    repo_id, _, revision = repo.partition("@")
    try:
        file = _download(repo_id, revision or None, choose_file)
    except GatedRepoError as error:
        raise WeightsError(
            f"hf-hub:{repo}: access is granted per person. Accept the terms at "
            f"https://huggingface.co/{repo_id}, then set HF_TOKEN in the environment of the job."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise WeightsError(
            f"hf-hub:{repo}: no such model or revision, or it is private and HF_TOKEN is not set."
        ) from error
    except (OSError, HTTPError) as error:  # "not in the cache" is an OSError
        raise WeightsError(
            f"hf-hub:{repo}: the hub cannot be reached and its local cache has no weights of it "
            f"({type(error).__name__}). Download them on a machine with access (`hf download "
            f"{repo_id}`), then give the file or folder: --weights /path or s3://bucket/file."
        ) from error
    return file, f"{repo_id}@{file.parent.name}"


def _download(repo_id: str, revision: str | None, choose_file: ChooseFile) -> Path:
    """The usual file names first, because they need no listing and work from the cache alone."""
    for name in PREFERRED:
        try:
            return Path(hf_hub_download(repo_id, name, revision=revision))
        except LocalEntryNotFoundError:  # hub out of reach: the cache may hold another name
            return _from_cache(repo_id, revision, choose_file)
        except EntryNotFoundError:
            continue
    names = HfApi().list_repo_files(repo_id, revision=revision)
    name = choose_file(names, f"hf-hub:{repo_id}")
    return Path(hf_hub_download(repo_id, name, revision=revision))


def _from_cache(repo_id: str, revision: str | None, choose_file: ChooseFile) -> Path:
    """The weights in the hub's local cache, without asking the hub."""
    folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
    names = [path.name for path in folder.iterdir()]
    return folder / choose_file(names, f"hf-hub:{repo_id} (local cache)")
