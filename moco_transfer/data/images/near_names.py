"""Files that lie nearly where annotations say: another suffix or case, another form of Unicode,
backslashes, other folders.
"""

from __future__ import annotations

import difflib
import itertools
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...runtime.errors import printable
from .image_source import EXTENSIONS, is_image, missing_files

_SUFFIXES = (*EXTENSIONS, ".xml", ".txt")
_SEEN = 2000  # files that a message is chosen from
_Parts = tuple[str, ...]


def _composed(parts: _Parts) -> _Parts:
    return tuple(unicodedata.normalize("NFC", part) for part in parts)


def _folded(parts: _Parts) -> _Parts:
    # NFKC: macOS writes a narrow blank before PM, and some keyboards wide digits.
    return tuple(unicodedata.normalize("NFKC", part).strip().casefold() for part in parts)


def _without_suffix(parts: _Parts) -> _Parts:
    *folders, name = _folded(parts)
    return (*folders, os.path.splitext(name)[0].strip() if name.endswith(_SUFFIXES) else name)


# What may differ, from the nearest on.
_FORMS: tuple[Callable[[_Parts], _Parts], ...] = (tuple, _composed, _folded, _without_suffix)


@dataclass(frozen=True)
class Found:
    """Which file each name stands for."""

    paths: dict[str, str]  # name -> path below the folder; not of names without a file
    folder: str | os.PathLike[str] = ""

    def path(self, name: str) -> str:
        """Return the file of a name; where the name itself says if it was not found."""
        return os.path.join(self.folder, self.paths.get(name, name))

    def remarks(self) -> list[str]:
        """Return a sentence if names stand for others."""
        others = [name for name, path in self.paths.items() if path != name]
        if not others:
            return []
        example = f"{self.paths[others[0]]!r} is taken for {others[0]!r}"
        where = f"files below {self.folder} under nearly the right name"
        return [f"{where}: {len(others)}, for example {example}."]


def find_names(
    names: Iterable[str], files: Sequence[str], folder: str | os.PathLike[str] = ""
) -> Found:
    r"""Find names among ``files``, paths below a folder, with slashes.

    A name that is none of them stands for the file in the nearest form whose path is the end of its
    own, or the other way round: ``C:\x\a.jpg`` and ``a.jpg`` for ``x/a.JPG``, but not
    ``y/a.jpg``. It is not found where several files are as near, or its file is another name's.
    """
    there, names = set(files), list(dict.fromkeys(names))
    paths = {name: name for name in names if name in there}
    tables = [_table(form, files) for form in _FORMS] if len(paths) < len(names) else []
    candidates = {name: _nearest(name, tables) for name in names if name not in paths}
    claims = Counter([*paths.values(), *(near[0] for near in candidates.values() if near)])
    paths |= {n: c[0] for n, c in candidates.items() if len(c) == 1 and claims[c[0]] == 1}
    return Found({name: paths[name] for name in names if name in paths}, folder)


def _table(form: Callable[[_Parts], _Parts], files: Sequence[str]) -> dict[str, list]:
    table = defaultdict(list)
    for file in files:
        parts = form(tuple(file.split("/")))
        table[parts[-1]].append((parts, file))
    return table


def _nearest(name: str, tables: list[dict[str, list]]) -> list[str]:
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    up = len(parts) - parts[::-1].index("..") if ".." in parts else 0
    if not parts[up:]:
        return []
    for form, table in zip(_FORMS, tables, strict=True):
        mine = form(tuple(parts[up:]))
        whole, ends = [], []
        for theirs, file in table.get(mine[-1], ()):
            length = min(len(mine), len(theirs))
            if mine == theirs:
                whole.append(file)
            elif mine[-length:] == theirs[-length:]:
                ends.append(file)
        if whole or ends:
            return whole or ends
    return []


def lies_near(path: str | os.PathLike[str], is_wanted: Callable[[str], bool] = is_image) -> str:
    """Return `` FOLDER has ...`` (with the blank) for a missing file: names like its own below the
    nearest folder that exists, or else what is there.
    """
    if os.path.islink(path) and not os.path.exists(path):
        return printable(f" {path} is a link to {os.readlink(path)}, which is not there.")
    if os.path.exists(path):
        return printable(f" {path} is a {'folder' if os.path.isdir(path) else 'file'}.")
    folder, leaf = os.path.split(os.fspath(path).replace("\\", "/"))
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder) if folder != os.path.dirname(folder) else ""
    # Bounded: the folder may be the root of the disk, and the comparison is slow.
    files = [file for file in itertools.islice(_walk(folder or "."), _SEEN) if is_wanted(file)]
    bases = {file.rpartition("/")[2] for file in files}
    close = set(difflib.get_close_matches(leaf, bases, n=3))
    near = [file for file in files if file.rpartition("/")[2] in close] or files
    some = ", ".join(near[:3]) + ", ..." * (len(near) > 3)
    return printable(f" {folder or '.'} has {some or 'no such file'}.")


def find_image_files(names: Sequence[str], folder: str | os.PathLike[str]) -> Found:
    """Find images below a folder; it is only searched if a name is not there."""
    missing = {names[i] for i in missing_files(os.path.join(folder, name) for name in names)}
    if not missing:
        return Found({name: name for name in names}, folder)
    # Names that exist, wherever, keep their own file.
    own = {os.path.normpath(name).replace(os.sep, "/") for name in names if name not in missing}
    files = [file for file in list_files(folder, is_image) if file not in own]
    found = find_names([name for name in names if name in missing], files, folder)
    return Found({name: name for name in names if name not in missing} | found.paths, folder)


def list_files(folder: str | os.PathLike[str], is_wanted: Callable[[str], bool]) -> list[str]:
    """Return the wanted files below a folder, relative to it, with slashes, sorted; names that
    start with a dot are left out.
    """
    return sorted(filter(is_wanted, _walk(folder)))


def _walk(folder: str | os.PathLike[str]) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        start = "" if below == "." else f"{below}/"
        yield from (start + name for name in sorted(names) if not name.startswith("."))
