"""Convert a checkpoint: read, account for every tensor, write, read back, compare.

A file that fails any of it never appears.
"""

from __future__ import annotations

import html
import logging
import os
from collections import Counter
from dataclasses import dataclass, replace
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
from .architecture import named_architecture
from .channels import (
    as_rgb,
    channels_of,
    channels_to_write,
    check_channels,
    rgb_filters,
    rgb_weights,
    stamp_of_channels,
    with_channels,
)
from .coverage import Coverage, check_source, source_coverage
from .formats import Source, read_source
from .huggingface import WEIGHTS, can_hold, write_configs
from .read import Content, read_checkpoint
from .stamp import make_stamp, read_stamp
from .verify import TOLERANCE, compare, features_of, generated_image
from .write import KEY_ENCODER, SUFFIXES, companions, write
from .zoo import local_file

logger = logging.getLogger(__name__)

# What the comparison covers: names and shapes do not tell an anti-aliased ResNet from a plain one.
VERIFIED = (
    "the tensors read and those written, in a plain {arch}; not what another program computes with"
    " them (other pooling, padding or activations)"
)
VERIFY_UP_TO = 1_000_000_000  # bytes of the source, unless told otherwise


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion read, did and wrote."""

    source: Path
    source_format: str  # the layout of the file read, in words ``source_title``
    source_title: str
    arch: str
    encoder: str | None  # q or k; None where the source knows one encoder only
    stamp: dict[str, Any]  # what the file written carries about its origin
    expected: tuple[str, ...]  # torchvision's names of what the backbone needs (265 in ResNet-50)
    mapped: dict[str, str]  # name in the source -> name in the file written, BN's counters included
    dropped: dict[str, str]  # name in the source -> why it was not taken
    carried: dict[str, str]  # as mapped, of the head, key encoder and queue, for --to moco
    to: str
    output: Path
    sha256: str  # of the file written
    differences: dict[str, float]  # res2 to res5 -> largest, of the features; empty: not verified

    def table(self) -> str:
        """Return the coverage as text: tensors expected, mapped, and dropped with the reasons."""
        counters = sum(name.endswith(BATCH_COUNTER) for name in self.mapped)
        encoder = f", encoder {self.encoder}" if self.encoder else ""
        more = f" and {counters} batch counters of BN" if counters else ""
        found = ", ".join(f"{stage} {value:.1e}" for stage, value in self.differences.items())
        verified = f"verified: features agree to {TOLERANCE:.0e} ({found})"
        kinds = Counter(name.split(".")[1] for name in self.carried.values())
        carried = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
        carried = f"{len(self.carried)}: {carried or 'no head, key encoder or queue'}"
        rows = [
            ("source", f"{self.source} ({self.source_title}{encoder})"),
            ("architecture", self.arch),
            ("expected", f"{len(self.expected)} backbone tensors"),
            ("mapped", f"{len(self.mapped) - counters}{more}"),
            ("missing", "0"),
            *([("carried", carried)] if self.to == "moco" else []),
            ("dropped", str(len(self.dropped))),
            *(("", f"{n} x {why}") for why, n in Counter(self.dropped.values()).most_common()),
            ("features", verified if found else "not verified (asked not to, or over 1 GB)"),
            *([("", VERIFIED.format(arch=self.arch))] if found else []),
        ]
        return _in_columns(rows)

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre-wrap">{html.escape(self.table())}</pre>'


def convert_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str = "detectron2",
    encoder: str = "q",
    source_format: str | None = None,
    verify: bool | None = None,
    arch: str | None = None,
    input_channels: int = 3,
) -> ConversionReport:
    """Convert a pre-trained backbone, or refuse and write nothing.

    Args:
        src: The checkpoint, a folder with Hugging Face's model.safetensors, or a name of
            :mod:`moco_transfer.convert.zoo`; no code in it is run.
        dst: The file to write. It appears whole or not at all; an existing one stays on failure.
        to: "detectron2" (.pkl), "torchvision" (.pth), "timm" (.safetensors), "huggingface"
            (model.safetensors, with config.json) or "moco" (.pth.tar, with both encoders, their
            heads and the queue as far as the source has them).
        encoder: "q" for the encoder that was trained, "k" for its momentum copy.
        source_format: A layout, where the keys can be read in two ways; None to recognise it.
        verify: Whether to compare the features of both files, on a generated image; None for "if
            the source has at most 1 GB".
        arch: torchvision's name of the network; None to recognise it by its shapes.
        input_channels: Of the images that the file written is for: 1 for grey, or several bands.

    Raises:
        InputError: If the source cannot be read or recognised, a tensor is missing, left over,
            misshapen or not finite, or the features differ.
        MissingFileError: If there is no file ``src``.
    """
    src, dst = _weights_file(src), Path(dst)
    _check_arguments(src, dst, to, arch, encoder)
    check_channels(input_channels, to)
    content = read_checkpoint(src)
    source = rgb_weights(read_source(content, encoder=encoder, source_format=source_format))
    arch = arch or named_architecture(content, recognise(source.state))
    input_channels = channels_to_write(source, input_channels, to)
    check_source(source, arch, src, channels_of(source))
    carried = companions(content, source) if to == "moco" else {}
    encoders = {"q": source}
    if any(name.startswith(KEY_ENCODER) for name in carried.values()):
        encoders["k"] = rgb_weights(read_source(content, encoder="k", source_format=source_format))
        check_source(encoders["k"], arch, src)
    stamp = make_stamp(content, source, arch=arch, sha256=sha256_of(src))
    _check_network(source, stamp, src, to)
    stamp = stamp_of_channels(stamp, input_channels)
    adapted = with_channels(source, input_channels)
    extra = {there: rgb_filters(here, content.tensors[here]) for here, there in carried.items()}
    verify = src.stat().st_size <= VERIFY_UP_TO if verify is None else verify
    differences: dict[str, float] = {}
    with atomic_path(dst) as tmp:
        names = write(tmp, adapted.state, stamp, to=to, extra=extra)
        if verify:
            differences = _verify(encoders, extra, read_checkpoint(tmp), stamp, dst)
        sha256 = sha256_of(tmp)
    if to == "huggingface":
        write_configs(dst.parent, adapted.state, stamp)
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
        differences=differences,
    )


def _weights_file(name: str | os.PathLike[str]) -> Path:
    path = local_file(name)
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def _in_columns(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{title:<13} {text}" for title, text in rows)


def _check_arguments(src: Path, dst: Path, to: str, arch: str | None, encoder: str) -> None:
    if to not in SUFFIXES:
        raise InputError(f"Unknown target {to!r}; known: {', '.join(SUFFIXES)}.")
    if to == "moco" and encoder == "k":
        raise InputError(
            "--to moco writes both encoders: leave --encoder out. For the momentum copy as"
            " encoder_q, convert --to torchvision first and the result --to moco."
        )
    if arch is not None and arch not in ARCHITECTURES:
        raise InputError(f"Unknown architecture {arch!r}; known: {', '.join(ARCHITECTURES)}.")
    if dst.exists() and src.exists() and dst.samefile(src):
        raise InputError(f"{dst} is the source itself; name another file to write.")
    if to == "huggingface" and dst.name != WEIGHTS:
        raise InputError(f"transformers reads FOLDER/{WEIGHTS}, got {dst}; name such a file.")
    if dst.suffix not in SUFFIXES[to]:  # Detectron2 and timm choose their reader by it
        for other in (target for target, ends in SUFFIXES.items() if dst.suffix in ends):
            raise InputError(
                f"{dst} has the ending of a {other} file, expected {' or '.join(SUFFIXES[to])} for"
                f" --to {to}; rename it, or pass --to {other}."
            )


def _check_network(source: Source, stamp: dict[str, Any], src: Path, to: str) -> None:
    """Refuse what the target's network lacks or computes differently; warn of what is not known."""
    if to == "timm" and stamp["arch"] in WIDENED:
        raise InputError(f"timm has no {stamp['arch']}, whose stem is wider; use --to torchvision.")
    if to == "huggingface" and not can_hold(stamp["arch"]):
        raise InputError(
            f"transformers' ResNet has no {stamp['arch']}; use --to torchvision or --to timm."
        )
    if to == "huggingface" and stamp["format"] == "BGR":
        logger.warning("%s was trained on BGR pixels; transformers' processors give RGB", src)
    if any("(fused" in name for name in source.names.values()):
        logger.warning("%s has fused batch norms; keep MODEL.RESNETS.NORM FrozenBN", src)
    if to == "moco":
        warn_of_official_assumptions(stamp, src)
    if to != "detectron2" and stamp["stride_in_1x1"] is None:
        logger.warning("%s does not state STRIDE_IN_1X1; a %s ResNet has False", src, to)
    elif to not in ("detectron2", "huggingface") and stamp["stride_in_1x1"]:
        raise InputError(
            f"{src} has its strides in the 1x1 convolutions (STRIDE_IN_1X1 True), as no {to} ResNet"
            " has; --to detectron2 or huggingface can hold it."
        )


def warn_of_official_assumptions(stamp: dict[str, Any], path: object) -> None:
    """Warn of what facebookresearch/moco's tools assume and these weights do not have."""
    if stamp["arch"] not in torchvision.models.list_models(module=torchvision.models):
        logger.warning("%s: torchvision has no %s, so main_lincls.py fails", path, stamp["arch"])
    order, mean, std = stamp["format"], stamp["pixel_mean"], stamp["pixel_std"]
    if order is not None and {"format": order, "mean": mean, "std": std} != IMAGENET_PIXELS:
        logger.warning(
            "%s was trained on %s pixels of mean %s and std %s; the official tools use ImageNet's",
            *(path, order, mean, std),
        )


def _verify(
    encoders: dict[str, Source],
    extra: dict[str, Tensor],
    written: Content,
    stamp: dict[str, Any],
    dst: Path,
) -> dict[str, float]:
    """Compare each encoder's features before and after, and bit by bit what is carried along."""
    image = generated_image(channels=stamp.get("input_channels", 3))
    network = {"arch": stamp["arch"], "stride_in_1x1": bool(stamp["stride_in_1x1"])}
    found: dict[str, float] = {}
    for role, before in encoders.items():
        after = features_of(read_source(written, encoder=role), image, **network)
        seen = as_rgb(image) if channels_of(before) == 3 else image
        here = compare(features_of(before, seen, **network), after, path=dst)
        found = {stage: max(value, found.get(stage, 0.0)) for stage, value in here.items()}
    for name, tensor in extra.items():
        there = written.tensors.get(f"state_dict.{name}")
        if there is None or not torch.equal(tensor.to(there.dtype), there):
            raise InputError(f"Not written: {name} of {dst} would differ from its source.")
    return found


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is."""

    file: Path
    bytes: int
    container: str  # the kind of file, in words
    sha256: str
    tensors: int
    problem: str | None = None  # why its layout is not known; all below is then empty
    layout: str | None = None  # in words ``layout_title``
    layout_title: str | None = None
    prefix: str | None = None  # of the encoder's names
    arch: str | None = None
    coverage: Coverage | None = None
    remarks: tuple[str, ...] = ()
    stamp: dict[str, Any] | None = None  # None: this program did not write the file

    def table(self) -> str:
        """Return it as lines of text."""
        rows = [
            ("file", f"{self.file} ({self.bytes / 1e6:.1f} MB, {self.container})"),
            ("sha256", self.sha256),
            ("tensors", str(self.tensors)),
        ]
        if self.coverage is None:
            return _in_columns([*rows, ("layout", self.problem or "")])
        covered = self.coverage.sentence(self.file.name, self.arch or "", advice="").rstrip()
        layout = f"{self.layout_title} ({self.layout}), under {self.prefix!r}"
        rows += [("layout", layout), ("coverage", covered)]
        rows += [("", remark) for remark in self.remarks]
        rows += [("stamp", "" if self.stamp else "none: this program did not write the file")]
        rows += [("", f"{key}: {value}") for key, value in (self.stamp or {}).items()]
        return _in_columns(rows)


def inspect(
    path: str | os.PathLike[str], *, encoder: str = "q", source_format: str | None = None
) -> Inspection:
    """Return what a checkpoint is; arguments as :func:`convert_checkpoint`. Nothing is written."""
    path = _weights_file(path)
    content = read_checkpoint(path)
    found = Inspection(
        path, path.stat().st_size, content.container, sha256_of(path), len(content.tensors)
    )
    try:
        source = rgb_weights(read_source(content, encoder=encoder, source_format=source_format))
    except InputError as error:
        return replace(found, problem=str(error))
    arch, remarks = recognise(source.state), []
    try:
        named_architecture(content, arch)
    except InputError as error:
        remarks.append(str(error))
    if has_small_stem(source.state):
        remarks.append("its 3x3 stem is for small images (CIFAR): no detector's backbone")
    return replace(
        found,
        layout=source.format,
        layout_title=source.title,
        prefix=source.prefix,
        arch=arch,
        coverage=source_coverage(source, arch, channels_of(source)),
        remarks=tuple(remarks),
        stamp=read_stamp(content),
    )
