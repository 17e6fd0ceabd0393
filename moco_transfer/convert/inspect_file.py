"""Say what a file is: its container, its layout, its stamp, and which of a backbone's tensors it
has.
"""

from __future__ import annotations

import os

from moco_transfer.models import backbone_shapes, has_small_stem, recognise
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.files import sha256_of

from .coverage import coverage
from .formats import read_source
from .key_maps import WRITE_NAME
from .read import read_checkpoint
from .stamp import read_stamp
from .zoo import local_file


def describe(
    path: str | os.PathLike[str], *, encoder: str = "q", source_format: str | None = None
) -> str:
    """Return what a checkpoint is, in lines of text; nothing is written and no code in it is run.

    Args:
        path: The file, or a name of :mod:`moco_transfer.convert.zoo`.
        encoder: Which of its encoders the coverage is about, "q" or "k".
        source_format: Its layout where its keys can be read in two ways.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it cannot be read or holds no tensor. A file in no known layout is described
            as such.
    """
    path = local_file(path)
    content = read_checkpoint(path)
    lines = [
        (
            f"file          {content.path} ({content.path.stat().st_size / 1e6:.1f} MB,"
            f" {content.container})"
        ),
        f"sha256        {sha256_of(path)}",
        f"tensors       {len(content.tensors)}",
    ]
    try:
        source = read_source(content, encoder=encoder, source_format=source_format)
    except InputError as error:
        return "\n".join([*lines, f"layout        {error}"])
    arch = recognise(source.state)
    name_there = WRITE_NAME[source.layout.naming]
    expected = {
        f"{source.prefix}{name_there(name)}": shape for name, shape in backbone_shapes(arch).items()
    }
    have = {f"{source.prefix}{name_there(name)}": tensor for name, tensor in source.state.items()}
    have.update({name: () for name in source.unknown})
    lines.append(f"layout        {source.title} ({source.format}), under {source.prefix!r}")
    lines.append(
        f"coverage      {coverage(have, expected).sentence(content.path.name, arch, advice='')}".rstrip()
    )
    if has_small_stem(source.state):
        lines.append(
            "              its 3x3 stem is for small images (CIFAR): it cannot become a"
            " detector's backbone"
        )
    stamp = read_stamp(content)
    if stamp is None:
        lines.append("stamp         none: this program did not write the file")
    else:
        lines += [
            f"{'stamp' if i == 0 else '':<13} {key}: {value}"
            for i, (key, value) in enumerate(stamp.items())
        ]
    return "\n".join(lines)
