"""Some of a data set's classes, in an order of one's own, or several of them as one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from ...runtime.errors import InputError, MissingFileError, did_you_mean
from ...runtime.text import read_text
from ..images.near_names import lies_near
from .records import Contents, count_left_out


def select_classes(
    contents: Contents, chosen: Sequence[str], name: str, *, can_merge: bool = True
) -> Contents:
    """Return contents with the classes of ``chosen`` alone, in this order; ``a+b`` makes one class
    of two, whose id is that of ``a``. Images stay, whether they have such objects or not.

    InputError of the data set ``name`` if a class is unknown or occurs twice, or if there are two
    in one and not ``can_merge``: LVIS and Cityscapes are scored by the classes of their files.
    """
    groups = [members(word, contents.class_names, name) for word in chosen]
    index_of = {old: index for index, group in enumerate(groups) for old in group}
    if len(index_of) < sum(map(len, groups)):
        raise InputError(f"Data set {name!r}: classes {','.join(chosen)} name a class twice.")
    if not can_merge and any(len(group) > 1 for group in groups):
        merged = next(word for word, group in zip(chosen, groups, strict=True) if len(group) > 1)
        raise InputError(
            f"Data set {name!r}: {merged} makes one class of several, but LVIS and Cityscapes are"
            " scored by the classes of their files; choose single ones."
        )
    ids = tuple(contents.category_ids[group[0]] for group in groups)
    records = []
    for record in contents.records:
        of_lvis = {
            key: [i for i in record[key] if i in ids]
            for key in ("neg_category_ids", "not_exhaustive_category_ids")
            if key in record
        }
        kept = [
            {**annotation, "category_id": index_of[annotation["category_id"]]}
            for annotation in record["annotations"]
            if annotation["category_id"] in index_of
        ]
        records.append({**record, **of_lvis, "annotations": kept})
    return dataclasses.replace(
        contents,
        records=records,
        class_names=tuple(chosen),
        category_ids=ids,
        left_out=count_left_out(records, keypoints=bool(contents.keypoint_names)),
        frequencies=tuple(contents.frequencies[g[0]] for g in groups if contents.frequencies),
    )


def members(word: str, names: Sequence[str], name: str) -> list[int]:
    """Return the indices of the classes that a word names; a file may use one name twice."""
    parts = [word] if word in names else word.split("+")
    for part in parts:
        if part not in names:
            some = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
            raise InputError(
                f"Data set {name!r} has no class {part!r}; it has {some}."
                f"{did_you_mean(part, names)}"
            )
    return [index for part in parts for index, known in enumerate(names) if known == part]


def parse_classes(text: str) -> tuple[str, ...]:
    """Return the class names of a comma list, or of a file with a class a line or all in one."""
    path = Path(text)
    if os.path.isfile(text):  # False for a list longer than a name may be
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        lines = lines[0].split(",") if len(lines) == 1 else lines
        return tuple(line.strip() for line in lines if line.strip())
    if "/" in text or text.endswith(".txt"):
        near = lies_near(path, lambda name: name.endswith(path.suffix))
        raise MissingFileError(f"The file of class names {text} does not exist.{near}")
    return tuple(name.strip() for name in text.split(","))
