"""Which images and videos a prediction is for, and what each drawing is called."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...data.images.image_source import EXTENSIONS
from ...runtime.errors import InputError, MissingFileError
from ...runtime.text import read_text
from .video import VIDEOS

JPEG = (".jpg", ".jpeg")
_KEPT, _PNG = (*JPEG, ".png"), ".png"  # drawings are saved as these; other images as .png
_LIST = ".txt"  # of images, one path a line, relative to the list


class Image(NamedTuple):
    """An image or video: its file, and where below the output folder its drawing goes."""

    path: str
    drawn: str

    @property
    def is_video(self) -> bool:
        """Whether it has frames."""
        return Path(self.path).suffix.lower() in VIDEOS


class _Names:
    """Takes each file once, and gives its drawing a name of its own below the output folder."""

    def __init__(self, output_dir: str) -> None:
        self._output = Path(output_dir)
        self._files: set[Path] = set()
        self._drawn: set[str] = set()
        self._targets: dict[Path, Path] = {}

    def add(self, file: Path, relative: Path) -> Iterator[Image]:
        """Yield the image unless it was there; InputError if a drawing would overwrite one."""
        if (source := file.resolve()) in self._files:
            return
        self._files.add(source)
        suffix = relative.suffix.lower()
        stem, ending = relative, ".mp4" if suffix in VIDEOS else _PNG
        if suffix in _KEPT or suffix == ending:
            stem, ending = relative.with_suffix(""), relative.suffix
        names = (f"{stem}{f'-{n}' if n > 1 else ''}{ending}" for n in itertools.count(1))
        drawn = next(name for name in names if name not in self._drawn)
        self._drawn.add(drawn)
        self._targets[(self._output / drawn).resolve()] = self._output / drawn
        for path in self._files & self._targets.keys():
            raise InputError(
                f"--output {self._output} would overwrite the image {self._targets[path]}."
            )
        yield Image(str(file), drawn)


def find_images(paths: Sequence[str], output_dir: str) -> list[Image]:
    """Return the images and videos that files, lists and folders stand for, each once. Folders are
    searched for images, at any depth, without the output folder.

    Raises:
        InputError: If a path does not exist, a folder holds no image, or a drawing would overwrite
            an image.
    """
    names, output, found = _Names(output_dir), Path(output_dir).resolve(), list[Image]()
    for path in map(Path, paths):
        if not path.exists():
            raise MissingFileError(f"The image {path} does not exist.")
        files = sorted(path.rglob("*")) if path.is_dir() else _listed(path)
        if path.is_dir():
            files = [f for f in files if f.suffix.lower() in EXTENSIONS and f.is_file()]
            files = [f for f in files if output not in f.resolve().parents]
        if not files:
            raise InputError(f"The folder {path} holds no image ({', '.join(EXTENSIONS)}).")
        for file in files:
            relative = file.relative_to(path) if path.is_dir() else Path(file.name)
            found += names.add(file, relative)
    return found


def named_images(lines: Iterable[str], output_dir: str) -> Iterator[Image]:
    """Yield the image or video that each line names, as soon as the line is there. InputError if a
    drawing would overwrite an image.
    """
    names = _Names(output_dir)
    for line in lines:
        if name := line.rstrip("\r\n"):
            yield from names.add(Path(name), Path(Path(name).name))


def _listed(path: Path) -> list[Path]:
    """Return the images of a list, or the image itself."""
    if path.suffix.lower() != _LIST:
        return [path]
    lines = read_text(path).splitlines()
    files = [path.parent / line.strip() for line in lines if line.strip()]
    if missing := [file for file in files if not file.is_file()]:
        raise MissingFileError(
            f"{path} names {len(missing)} of {len(files)} images that do not exist; the first is"
            f" {missing[0]}. Paths are relative to the list."
        )
    return files
