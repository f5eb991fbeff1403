"""Finds slide files in folders, by patterns, and below prefixes of an object store."""

import glob
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mstar.errors import ConfigError
from mstar.storage import objects
from mstar.storage.objects import FileInfo

SLIDE_EXTENSIONS = {
    ".svs": "Aperio",
    ".tif": "Aperio, Philips, Trestle, generic",
    ".tiff": "Philips, generic",
    ".ndpi": "Hamamatsu",
    ".vms": "Hamamatsu",
    ".vmu": "Hamamatsu",
    ".mrxs": "3DHISTECH MIRAX, with a folder of the same name",
    ".scn": "Leica",
    ".bif": "Ventana",
    ".svslide": "Sakura",
    ".czi": "Zeiss",
    ".dcm": "DICOM, one slide (series) per folder",
}
_MRXS_DATA = (".dat", ".ini")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSlide:
    """A slide on disk or in a store. size_bytes: of all its files."""

    slide_id: str
    uri: str
    size_bytes: int


def find_slides(spec: str) -> list[FoundSlide]:
    """The slides that a file, folder or pattern names, sorted by id.

    Ids are relative to the folder, or to the part of a pattern before its first wildcard. The list
    is held in memory (a few hundred bytes a slide); for millions, write a manifest.
    """
    address = spec
    if objects.is_local(spec):
        address = os.path.abspath(objects.local_path(spec))
    found = objects.stat(address)
    if found is not None:
        stem = plain_stem(posixpath.basename(address))
        return [FoundSlide(slide_id=stem, uri=address, size_bytes=_whole_size(found))]
    return _find_many(spec, address)


def plain_stem(path: str) -> str:
    """The path without the extension of its last name."""
    return posixpath.splitext(path)[0]


def _find_many(spec: str, address: str) -> list[FoundSlide]:
    root, infos = address, objects.list_files(address)
    wild = _WILD.search(address)
    if wild and not (objects.is_local(address) and Path(address).exists()):
        root = address[: wild.start()].rpartition("/")[0]
        infos = _match(root, address)
    groups = _Groups(root)
    for info in infos:
        groups.add(info)
    slides = groups.slides()
    if not slides:
        known = " ".join(SLIDE_EXTENSIONS)
        raise ConfigError(
            f"{spec}: no slides found among {groups.num_files} files. Expected a slide, a folder "
            f"or pattern with {known}, or a manifest .csv or .parquet. Check --slides."
        )
    return slides


@dataclass(slots=True)
class _Groups:
    """Puts listed files together to slides: most are one file, MRXS and DICOM are several."""

    root: str
    num_files: int = 0
    _sizes: dict[str, int] = field(default_factory=dict)  # relative name → bytes
    _folders: Counter[str] = field(default_factory=Counter)  # of MRXS data → bytes
    _dicom: dict[str, list[str]] = field(default_factory=dict)  # folder → files
    _dicom_sizes: Counter[str] = field(default_factory=Counter)

    def add(self, info: FileInfo) -> None:
        """Take one listed file in."""
        self.num_files += 1
        folder, kind = posixpath.dirname(info.rel), posixpath.splitext(info.rel)[1].lower()
        if kind == ".dcm":
            self._dicom.setdefault(folder, []).append(info.rel)
            self._dicom_sizes[folder] += info.size_bytes
        elif kind in SLIDE_EXTENSIONS:
            self._sizes[info.rel] = info.size_bytes
        elif kind in _MRXS_DATA:
            self._folders[folder] += info.size_bytes

    def slides(self) -> list[FoundSlide]:
        """All slides, sorted by id, then by address."""
        found = [self._single(rel, size) for rel, size in self._sizes.items()]
        found += [self._series(folder, rels) for folder, rels in self._dicom.items()]
        return sorted(found, key=lambda slide: (slide.slide_id, slide.uri))

    def _single(self, rel: str, size_bytes: int) -> FoundSlide:
        stem = plain_stem(rel)
        if rel.lower().endswith(".mrxs"):
            size_bytes += self._folders[stem]
        return FoundSlide(slide_id=stem, uri=objects.join(self.root, rel), size_bytes=size_bytes)

    def _series(self, folder: str, rels: list[str]) -> FoundSlide:
        """A DICOM slide is addressed by its first file, and named after its folder."""
        return FoundSlide(
            slide_id=folder or posixpath.basename(self.root),
            uri=objects.join(self.root, min(rels)),
            size_bytes=self._dicom_sizes[folder],
        )


def _whole_size(info: FileInfo) -> int:
    """The size of a slide given by its one address."""
    if not info.uri.lower().endswith(".mrxs"):
        return info.size_bytes
    return info.size_bytes + sum(i.size_bytes for i in objects.list_files(plain_stem(info.uri)))


def _match(root: str, pattern: str) -> Iterator[FileInfo]:
    return _match_local(root, pattern) if objects.is_local(pattern) else _match_s3(root, pattern)


def _match_local(root: str, pattern: str) -> Iterator[FileInfo]:
    """Matching files; of matching folders, what lies below them."""
    for path in glob.iglob(pattern, recursive=True):
        rel = os.path.relpath(path, root or "/")
        inside = path
        found = objects.stat(path)
        if found is not None:
            yield _renamed(found, rel)
            inside = plain_stem(path) if path.lower().endswith(".mrxs") else ""
        for info in objects.list_files(inside) if inside else ():
            yield _renamed(info, f"{os.path.relpath(inside, root or '/')}/{info.rel}")


def _match_s3(root: str, pattern: str) -> Iterator[FileInfo]:
    """Matching objects, and the data of MRXS slides wherever they are."""
    wanted = re.compile(_to_regex(pattern))
    for info in objects.list_files(root):
        if wanted.fullmatch(info.uri) or info.rel.lower().endswith(_MRXS_DATA):
            yield info


def _renamed(info: FileInfo, rel: str) -> FileInfo:
    return FileInfo(uri=info.uri, rel=rel, size_bytes=info.size_bytes, tag=info.tag)


_TOKENS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _to_regex(pattern: str) -> str:
    """A shell pattern as a regular expression; `**` crosses folders, the others do not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern)
    return "".join(_TOKENS.get(p) or (_one_of(p) if p[:1] == "[" else re.escape(p)) for p in parts)


def _one_of(brackets: str) -> str:
    inside = brackets[1:-1].replace("\\", "\\\\")
    return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
