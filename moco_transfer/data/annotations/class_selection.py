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

    InputError as :func:`group_classes`, or if there are two in one and not ``can_merge``: LVIS and
    Cityscapes are scored by the classes of their files.
    """
    class_names, groups = group_classes(chosen, contents.class_names, name)
    index_of = {old: index for index, group in enumerate(groups) for old in group}
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
        class_names=class_names,
        category_ids=ids,
        left_out=count_left_out(records, keypoints=bool(contents.keypoint_names)),
        frequencies=tuple(contents.frequencies[g[0]] for g in groups if contents.frequencies),
    )


def group_classes(
    chosen: Sequence[str], names: Sequence[str], name: str
) -> tuple[tuple[str, ...], list[list[int]]]:
    """Return the names of the chosen classes, and of each the indices into ``names`` that it takes
    in: ``a+b`` are two in one of this name, and ``c=a+b`` the same with the name c. A file may use
    one name twice. InputError of the data set ``name`` if a class is unknown or occurs twice.
    """
    labels, groups = [], []
    for word in chosen:
        label, _, merged = word.rpartition("=")
        if word in names:  # whatever is in it
            label, merged = word, ""
        parts = merged.split("+") if merged else [word]
        for part in parts:
            if part not in names:
                some = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
                raise InputError(
                    f"Data set {name!r} has no class {part!r}; it has {some}."
                    f"{did_you_mean(part, names)}"
                )
        labels.append(label or word)
        groups.append([index for part in parts for index, one in enumerate(names) if one == part])
    indices = [index for group in groups for index in group]
    if len(set(indices)) < len(indices) or len(set(labels)) < len(labels):
        raise InputError(f"Data set {name!r}: classes {','.join(chosen)} name a class twice.")
    return tuple(labels), groups


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


def check_class_count(name: str, classes: Sequence[str], num_classes: int, config_key: str) -> None:
    """Raise InputError if a config's number of classes is not that of the data set ``name``."""
    if len(classes) != num_classes:
        some = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise InputError(
            f"{config_key} is {num_classes}, but data set {name!r} has {len(classes)}"
            f" categories ({some}); set {config_key} {len(classes)}."
        )
