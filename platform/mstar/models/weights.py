"""Where an encoder's weights come from: found or fetched once, hashed, loaded by path and hash.

Addresses: a file (`.safetensors`, `.pth`, `.pt`, `.bin`), a folder, either of them at `s3://…`,
`hf-hub:org/name[@revision]`, `random:SEED`, or `built-in` for an encoder that is a fixed
computation: it has no weights, and its buffers are hashed instead. Something is downloaded only
when the address says so, or when the caller names no weights and the encoder's own default is a hub
id; both are logged.

The driver calls `resolve` before any slide is touched. Its result travels to the workers, which
call `localise`: the same file when it is there with the same hash, else the same address again,
into a cache named by content. Credentials (`HF_TOKEN`, `AWS_…`) are read by the libraries from the
environment and never pass through here.
"""

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path, PurePosixPath

from mstar.errors import WeightsError
from mstar.models.encoder_spec import EncoderSpec
from mstar.models.hub import PREFERRED, fetch_from_hub
from mstar.models.state_dicts import draw_model, state_sha256
from mstar.storage import objects

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
STAGE2_EXPORT = "encoder.safetensors"  # a folder of `mstar stage2` also holds its projection
HUB = "hf-hub:"
RANDOM = "random:"
BUILT_IN = "built-in"
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedWeights:
    """Weights that were found: by hash, by address, and by path on the node that resolved them.

    sha256: of the file's content; of the state dict when the weights are random or built in.
    uri: the address to resolve again on another node.
    path: the file here; None when the weights are random or built in.
    """

    sha256: str
    uri: str
    path: str | None

    @property
    def seed(self) -> int | None:
        """The seed of random weights, else None."""
        is_random = self.path is None and self.uri.startswith(RANDOM)
        return int(self.uri.removeprefix(RANDOM)) if is_random else None


def default_cache() -> Path:
    """Folder of fetched weights: `$MSTAR_CACHE/weights`, else `~/.cache/mstar/weights`."""
    return Path(os.environ.get("MSTAR_CACHE") or Path.home() / ".cache" / "mstar") / "weights"


def resolve(
    weights: str | None,
    spec: EncoderSpec,
    *,
    expected_sha256: str = "",
    cache: Path | None = None,
) -> ResolvedWeights:
    """Find or fetch the weights and hash them.

    Args:
        weights: an address (module docstring), None for the encoder's default.
        spec: the encoder they are for.
        expected_sha256: refuse anything else; empty to accept what is found.
        cache: folder for what is fetched from an object store; None for `default_cache()`.

    Raises:
        WeightsError: nothing usable is there, it cannot be fetched, or the hash differs.
    """
    uri = weights or spec.default_weights
    if not uri:
        raise WeightsError(f"encoder {spec.name} has no default weights: give --weights")
    _check_built_in(uri, spec)
    if weights is None and uri != BUILT_IN:
        logger.warning("encoder %s: no --weights given, using its default %s", spec.name, uri)
    if uri == BUILT_IN:
        sha256 = state_sha256(spec.build().state_dict())
        found = ResolvedWeights(sha256=sha256, uri=uri, path=None)
    elif uri.startswith(RANDOM):
        found = _resolve_random(uri, spec)
    elif uri.startswith(HUB):
        logger.warning("encoder %s: looking up %s on the model hub", spec.name, uri)
        file, pinned = fetch_from_hub(uri.removeprefix(HUB), choose_file)
        found = ResolvedWeights(sha256=file_sha256(file), uri=HUB + pinned, path=str(file))
    elif objects.is_local(uri):
        file = _local_file(objects.local_path(uri))
        found = ResolvedWeights(sha256=file_sha256(file), uri=str(file), path=str(file))
    else:
        found = _fetch_object(uri, cache or default_cache())
    if expected_sha256 and found.sha256 != expected_sha256.lower():
        raise WeightsError(
            f"{uri}: expected weights with sha256 {expected_sha256}, found {found.sha256}. "
            "Give the weights that this run or store was made with."
        )
    return found


def localise(
    resolved: ResolvedWeights, spec: EncoderSpec, *, cache: Path | None = None
) -> Path | None:
    """The resolved weights as a file on this node, fetched again when it is not there.

    Returns:
        The path; None when the weights are random or built in.

    Raises:
        WeightsError: the content is not what was resolved.
    """
    if resolved.path is None:
        return None
    if Path(resolved.path).is_file():
        path, sha256 = Path(resolved.path), file_sha256(Path(resolved.path))
        if sha256 == resolved.sha256:
            return path
        raise WeightsError(
            f"{path}: changed since the run started, or differs between nodes: expected sha256 "
            f"{resolved.sha256}, found {sha256}"
        )
    folder = cache or default_cache()
    with _one_at_a_time(folder, resolved.sha256):  # the workers of a node start together
        cached = next(iter(sorted((folder / resolved.sha256).glob("*"))), None)
        if cached is not None and file_sha256(cached) == resolved.sha256:
            return cached
        again = resolve(resolved.uri, spec, expected_sha256=resolved.sha256, cache=folder)
    return Path(again.path) if again.path else None


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose_file(names: Iterable[str], where: str) -> str:
    """The weights among a folder's file names (`/`-separated, only the top level counts).

    Raises:
        WeightsError: there is none, or more than one that could be meant.
    """
    files = sorted(n for n in names if "/" not in n and PurePosixPath(n).suffix in SUFFIXES)
    for preferred in (*PREFERRED, STAGE2_EXPORT):
        if preferred in files:
            return preferred
    if len(files) == 1:
        return files[0]
    if not files:
        raise WeightsError(f"{where}: no weights there (looked for {', '.join(SUFFIXES)})")
    raise WeightsError(f"{where}: which weights? Name one file of: {', '.join(files)}")


def _check_built_in(uri: str, spec: EncoderSpec) -> None:
    """Refuses weights for an encoder that has none, and none for one that needs some."""
    if spec.default_weights == BUILT_IN and uri != BUILT_IN:
        raise WeightsError(
            f"encoder {spec.name}: is a fixed computation and takes no weights, got {uri}. "
            "Leave --weights out."
        )
    if uri == BUILT_IN and spec.default_weights != BUILT_IN:
        raise WeightsError(
            f"encoder {spec.name}: expected weights, got {BUILT_IN}, which is only for encoders "
            "without any. Give a file, a folder, hf-hub:org/name or random:SEED."
        )


def _resolve_random(uri: str, spec: EncoderSpec) -> ResolvedWeights:
    """Weights drawn from a seed, hashed by their values."""
    seed = uri.removeprefix(RANDOM)
    if not (seed.isascii() and seed.isdigit()):
        raise WeightsError(f"{uri}: expected random:SEED with a whole number, such as random:0")
    logger.warning(
        "encoder %s: RANDOM weights (%s). Its features are fit for tests and demos only.",
        spec.name,
        uri,
    )
    sha256 = state_sha256(draw_model(spec.build, int(seed)).state_dict())
    return ResolvedWeights(sha256=sha256, uri=f"{RANDOM}{int(seed)}", path=None)


def _local_file(path: Path) -> Path:
    """The weights file at a local path or in a local folder, as an absolute path."""
    path = path.absolute()
    if path.is_dir():
        return path / choose_file((p.name for p in path.iterdir() if p.is_file()), str(path))
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file or folder on this node. A hub id is written hf-hub:org/name."
        )
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path}: expected one of {', '.join(SUFFIXES)}")
    return path


def _fetch_object(uri: str, cache: Path) -> ResolvedWeights:
    """Copy an object into the cache, hashing as it comes; a folder's file is chosen by listing."""
    if PurePosixPath(uri).suffix not in SUFFIXES:
        names = (info.rel for info in objects.list_files(uri))
        uri = objects.join(uri, choose_file(names, uri))
    logger.info("fetching weights %s", uri)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as folder:
        fetched = Path(folder) / PurePosixPath(uri).name
        with objects.open_read(uri) as source, fetched.open("wb") as target:
            sha256 = _copy_hashed(source.read, target)
        kept = cache / sha256 / fetched.name
        kept.parent.mkdir(exist_ok=True)
        os.replace(fetched, kept)
    return ResolvedWeights(sha256=sha256, uri=uri, path=str(kept))


def _copy_hashed(read: Callable[[int], bytes], target: BufferedWriter) -> str:
    """Copy in blocks, so that memory does not grow with the file; return the hash."""
    digest = hashlib.sha256()
    while block := read(_BLOCK_BYTES):
        digest.update(block)
        target.write(block)
    return digest.hexdigest()


@contextmanager
def _one_at_a_time(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock between the processes of this node; a killed holder frees it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
