"""Convert a checkpoint: read, account for every tensor, write, read back, compare.

A file that fails any of it never appears.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from ..models import IMAGENET_PIXELS
from ..models.resnets import (
    ARCHITECTURES,
    BATCH_COUNTER,
    WIDENED,
    backbone_shapes,
    has_small_stem,
    recognise,
)
from ..runtime.errors import InputError
from ..runtime.files import atomic_path, sha256_of
from .coverage import check_source, source_coverage
from .formats import Source, read_source
from .read import Content, read_checkpoint
from .stamp import make_stamp, read_stamp
from .verify import Verification, compare, features_of, generated_image, real_image
from .write import KEY_ENCODER, SUFFIXES, companions, write
from .zoo import local_file

logger = logging.getLogger(__name__)

VERIFY_UP_TO = 1_000_000_000
"""Bytes of the source up to which the conversion is verified unless told otherwise."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion read, did and wrote.

    Attributes:
        source: The file read.
        source_format: The layout it is in, for instance "moco".
        source_title: The layout in words.
        arch: torchvision's name of the network.
        encoder: "q" or "k"; None where the source knows one encoder only.
        stamp: What the file written carries about its origin.
        expected: torchvision's names of the tensors that the backbone needs (265 for ResNet-50).
        mapped: Name in the source -> name in the file written, BN's counters included.
        dropped: Name in the source -> why it was not taken.
        carried: Name in the source -> name in the file written, of what the official layout holds
            next to the trained backbone: head, key encoder, queue. Empty for the other targets.
        to: "detectron2", "torchvision", "timm" or "moco".
        output: The file written.
        sha256: Of the file written, 64 hexadecimal digits.
        verification: How far the features agree; None when that was not asked for.
    """

    source: Path
    source_format: str
    source_title: str
    arch: str
    encoder: str | None
    stamp: dict[str, Any]
    expected: tuple[str, ...]
    mapped: dict[str, str]
    dropped: dict[str, str]
    carried: dict[str, str]
    to: str
    output: Path
    sha256: str
    verification: Verification | None

    def table(self) -> str:
        """Return the coverage as text: tensors expected, mapped, and dropped with the reasons."""
        counters = sum(name.endswith(BATCH_COUNTER) for name in self.mapped)
        encoder = f", encoder {self.encoder}" if self.encoder else ""
        more = f" and {counters} batch counters of BN" if counters else ""
        rows = [
            ("source", f"{self.source} ({self.source_title}{encoder})"),
            ("architecture", self.arch),
            ("expected", f"{len(self.expected)} backbone tensors"),
            ("mapped", f"{len(self.mapped) - counters}{more}"),
            ("missing", "0"),
            *([("carried", self._carried())] if self.to == "moco" else []),
            ("dropped", str(len(self.dropped))),
            *(("", f"{n} x {why}") for why, n in Counter(self.dropped.values()).most_common()),
            ("features", str(self.verification or "not verified (asked not to, or over 1 GB)")),
        ]
        return _in_columns(rows)

    def _carried(self) -> str:
        kinds = Counter(name.split(".")[1] for name in self.carried.values())
        titles = {"encoder_q": "head", "encoder_k": "key encoder", "queue": "queue"}
        titles["queue_ptr"] = "queue's pointer"
        found = [f"{titles[kind]} ({kinds[kind]})" for kind in titles if kinds[kind]]
        nothing = "the source has no head, key encoder or queue of MoCo's"
        return f"{len(self.carried)}: {', '.join(found) or nothing}"


def convert_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str = "detectron2",
    encoder: str = "q",
    source_format: str | None = None,
    verify: bool | str | os.PathLike[str] | None = None,
    arch: str | None = None,
) -> ConversionReport:
    """Convert a pre-trained backbone, or refuse and write nothing.

    Args:
        src: The checkpoint to read, or a name of :mod:`moco_transfer.convert.zoo`; no code in it is
            run.
        dst: The file to write. It appears whole or not at all, and an existing one stays as it is
            when the conversion fails.
        to: "detectron2" (.pkl), "torchvision" (.pth), "timm" (.safetensors) or "moco" (.pth.tar,
            the layout of facebookresearch/moco, with both encoders, their heads and the queue as
            far as the source has them).
        encoder: "q" for the encoder that was trained, "k" for its momentum copy.
        source_format: The source's layout where its keys can be read in two ways; None to recognise
            it.
        verify: Whether to compare the features of both files, on a generated image; a path
            compares them on the image there; None for "if the source has at most 1 GB".
        arch: torchvision's name of the network; None to recognise it by its shapes.

    Returns:
        What was read, mapped, dropped and written.

    Raises:
        InputError: If the source cannot be read or recognised, lacks a tensor, has one too many, of
            another shape or with a value that is not finite, or if the features differ.
        MissingFileError: If there is no file ``src``.
    """
    src, dst = local_file(src), Path(dst)
    _check_arguments(src, dst, to, arch, encoder)
    content = read_checkpoint(src)
    source = read_source(content, encoder=encoder, source_format=source_format)
    arch = arch or recognise(source.state)
    check_source(source, arch, src)
    carried = companions(content, source) if to == "moco" else {}
    encoders = {"q": source}
    if any(name.startswith(KEY_ENCODER) for name in carried.values()):
        encoders["k"] = read_source(content, encoder="k", source_format=source_format)
        check_source(encoders["k"], arch, src)
    stamp = make_stamp(content, source, arch=arch, sha256=sha256_of(src))
    _check_network(source, stamp, src, to)
    extra = {there: content.tensors[here] for here, there in carried.items()}
    verify = src.stat().st_size <= VERIFY_UP_TO if verify is None else verify
    verification = None
    try:
        with atomic_path(dst) as tmp:
            names = write(tmp, source.state, stamp, to=to, extra=extra)
            if verify:
                verification = _verify(encoders, extra, read_checkpoint(tmp), stamp, dst, verify)
            sha256 = sha256_of(tmp)
    except OSError as error:  # a full disk, for one
        raise InputError(
            f"Cannot write {dst}: {error.strerror or error}; nothing was changed."
        ) from error
    logger.info("Converted %s to %s (%s): %d tensors", src, dst, to, len(names))
    return ConversionReport(
        source=src,
        source_format=source.format,
        source_title=source.title,
        arch=arch,
        encoder=source.encoder,
        stamp=stamp,
        expected=tuple(backbone_shapes(arch)),
        mapped={source.names[name]: names[name] for name in source.state},
        dropped={name: why for name, why in source.dropped.items() if name not in carried},
        carried=carried,
        to=to,
        output=dst,
        sha256=sha256,
        verification=verification,
    )


def _in_columns(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{title:<13} {text}" for title, text in rows)


def _check_arguments(src: Path, dst: Path, to: str, arch: str | None, encoder: str) -> None:
    if to not in SUFFIXES:
        raise InputError(f"Unknown target {to!r}; known: {', '.join(SUFFIXES)}.")
    if to == "moco" and encoder == "k":
        raise InputError(
            "--to moco writes the trained encoder as encoder_q and its momentum copy as encoder_k:"
            " leave --encoder out. For a file whose encoder_q is the momentum copy, write that --to"
            " torchvision first and convert the result --to moco."
        )
    if arch is not None and arch not in ARCHITECTURES:
        raise InputError(f"Unknown architecture {arch!r}; known: {', '.join(ARCHITECTURES)}.")
    if dst.exists() and src.exists() and dst.samefile(src):
        raise InputError(f"{dst} is the source itself; name another file to write.")
    if dst.suffix not in SUFFIXES[to]:  # Detectron2 and timm choose their reader by it
        other = next((target for target, ends in SUFFIXES.items() if dst.suffix in ends), None)
        if other:
            raise InputError(
                f"{dst} has the ending of a {other} file, expected {' or '.join(SUFFIXES[to])} for"
                f" --to {to}; rename it, or pass --to {other}."
            )


def _check_network(source: Source, stamp: dict[str, Any], src: Path, to: str) -> None:
    """Refuse what the target's network lacks or computes differently; warn of what is not known."""
    if to == "timm" and stamp["arch"] in WIDENED:
        raise InputError(
            f"timm has no {stamp['arch']}, whose stem is wider than 64 channels; --to torchvision"
            " writes the same tensors."
        )
    if any("(fused" in name for name in source.names.values()):
        sentence = "%s has batch norms fused into scale and shift; keep MODEL.RESNETS.NORM FrozenBN"
        logger.warning(sentence, src)
    if to == "moco":
        warn_of_official_assumptions(stamp, src)
    if to != "detectron2" and stamp["stride_in_1x1"] is None:
        sentence = "%s does not state STRIDE_IN_1X1; a %s ResNet has False"
        logger.warning(sentence, src, to)
    elif to != "detectron2" and stamp["stride_in_1x1"]:
        raise InputError(
            f"{src} has its strides in the 1x1 convolutions (STRIDE_IN_1X1 True), which no {to}"
            " ResNet has: its features there would differ; only --to detectron2 can hold it."
        )


def warn_of_official_assumptions(stamp: dict[str, Any], path: object) -> None:
    """Warn of what facebookresearch/moco's tools assume and these weights do not have."""
    arch, known = stamp["arch"], torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        sentence = "%s: torchvision has no %s, so main_lincls.py cannot build one"
        logger.warning(sentence, path, arch)
    order, mean, std = stamp["format"], stamp["pixel_mean"], stamp["pixel_std"]
    if order is not None and {"format": order, "mean": mean, "std": std} != IMAGENET_PIXELS:
        logger.warning(
            "%s was trained on %s pixels of mean %s and std %s, but the official tools feed RGB"
            " with ImageNet's; change them there.",
            *(path, order, mean, std),
        )


def _verify(
    encoders: dict[str, Source],
    extra: dict[str, Tensor],
    written: Content,
    stamp: dict[str, Any],
    dst: Path,
    verify: bool | str | os.PathLike[str],
) -> Verification:
    """Compare each encoder's features before and after, and bit by bit what is carried along."""
    image = generated_image() if verify is True else real_image(str(verify), stamp)
    network = {"arch": stamp["arch"], "stride_in_1x1": bool(stamp["stride_in_1x1"])}
    found: dict[str, float] = {}
    for role, before in encoders.items():
        after = features_of(read_source(written, encoder=role), image, **network)
        here = compare(features_of(before, image, **network), after, path=dst)
        found = {stage: max(value, found.get(stage, 0.0)) for stage, value in here.items()}
    for name, tensor in extra.items():
        there = written.tensors.get(f"state_dict.{name}")
        if there is None or not torch.equal(tensor.to(there.dtype), there):
            raise InputError(f"Not written: {name} of {dst} would differ from its source.")
    return Verification(found) if verify is True else Verification(found, str(verify))


def describe(
    path: str | os.PathLike[str], *, encoder: str = "q", source_format: str | None = None
) -> str:
    """Return what a checkpoint is, in lines of text; nothing is written and no code in it is run.

    Args, Raises: as :func:`convert_checkpoint`; a file in no known layout is described as such.
    """
    path = local_file(path)
    content = read_checkpoint(path)
    rows = [
        ("file", f"{path} ({path.stat().st_size / 1e6:.1f} MB, {content.container})"),
        ("sha256", sha256_of(path)),
        ("tensors", str(len(content.tensors))),
    ]
    try:
        source = read_source(content, encoder=encoder, source_format=source_format)
    except InputError as error:
        return _in_columns([*rows, ("layout", str(error))])
    arch = recognise(source.state)
    covered = source_coverage(source, arch).sentence(path.name, arch, advice="").rstrip()
    layout = f"{source.title} ({source.format}), under {source.prefix!r}"
    rows += [("layout", layout), ("coverage", covered)]
    if has_small_stem(source.state):
        rows.append(("", "its 3x3 stem is for small images (CIFAR): no detector's backbone"))
    stamp = read_stamp(content)
    entries = [f"{key}: {value}" for key, value in (stamp or {}).items()]
    entries = entries or ["none: this program did not write the file"]
    rows += [("" if index else "stamp", text) for index, text in enumerate(entries)]
    return _in_columns(rows)
