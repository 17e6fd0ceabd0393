"""Which images a prediction is for, and what each drawing is called."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...data.images.image_source import EXTENSIONS
from ...runtime.errors import InputError, MissingFileError

JPEG, PNG = (".jpg", ".jpeg"), ".png"  # drawings are saved as these; other images as .png
_LIST = ".txt"  # of images, one path a line, relative to the list


class Image(NamedTuple):
    """An image to look at: its file, and where below the output folder its drawing goes."""

    path: str
    drawn: str


def find_images(paths: Sequence[str], output_dir: str) -> list[Image]:
    """Return the images that files and folders stand for, each once, with a name of its own below
    the output folder. Folders are searched at any depth, without the output folder.

    Raises:
        InputError: If a path does not exist, a folder holds no image, or a drawing would overwrite
            an image.
    """
    output = Path(output_dir).resolve()
    found: dict[Path, tuple[Path, Path]] = {}  # by resolved path, so that each comes once
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
            found.setdefault(file.resolve(), (file, relative))
    images: dict[str, Image] = {}
    for file, relative in found.values():
        kept = relative.suffix.lower() in (*JPEG, PNG)
        stem, suffix = (relative.with_suffix(""), relative.suffix) if kept else (relative, PNG)
        names = (f"{stem}{f'-{n}' if n > 1 else ''}{suffix}" for n in itertools.count(1))
        drawn = next(name for name in names if name not in images)
        images[drawn] = Image(str(file), drawn)
        if (output / drawn).resolve() in found:
            raise InputError(f"--output {output_dir} would overwrite the image {output / drawn}.")
    return list(images.values())


def _listed(path: Path) -> list[Path]:
    """Return the images of a list, or the image itself."""
    if path.suffix.lower() != _LIST:
        return [path]
    lines = path.read_text(encoding="utf-8").splitlines()
    files = [path.parent / line.strip() for line in lines if line.strip()]
    if missing := [file for file in files if not file.is_file()]:
        raise MissingFileError(
            f"{path} names {len(missing)} of {len(files)} images that do not exist; the first is"
            f" {missing[0]}. Paths are relative to the list."
        )
    return files
