"""Convert a checkpoint: read, account for every tensor, write, read back, compare; a file that
fails any of it never appears.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco_transfer.models import (
    ARCHITECTURES,
    BATCH_COUNTER,
    WIDENED,
    backbone_shapes,
    has_small_stem,
    recognise,
)
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.files import atomic_path, sha256_of

from .coverage import coverage
from .formats import Source, read_source
from .key_maps import WRITE_NAME
from .official import MODULE, companions, has_key_encoder, warn_of_what_the_official_code_assumes
from .read import Content, read_checkpoint
from .stamp import make_stamp
from .verify import (
    Verification,
    compare,
    detectron2_features,
    generated_image,
    real_image,
    torchvision_features,
)
from .write import SUFFIXES, TARGETS, write
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
        mapped: Name in the source -> name in the file written; BN's counters included when the
            source has them.
        dropped: Name in the source -> why it was not taken.
        carried: Name in the source -> name in the file written, of what the official layout holds
            beside the trained backbone: head, key encoder, queue. Empty for the other targets.
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
        """Return the coverage as text: tensors expected, mapped and dropped, with the reason of
        each drop.
        """
        counters = sum(name.endswith(BATCH_COUNTER) for name in self.mapped)
        rows = [
            (
                "source",
                f"{self.source} ({self.source_title}"
                + (f", encoder {self.encoder})" if self.encoder else ")"),
            ),
            ("architecture", self.arch),
            ("expected", f"{len(self.expected)} backbone tensors"),
            (
                "mapped",
                f"{len(self.mapped) - counters}"
                + (f" and {counters} batch counters of BN" if counters else ""),
            ),
            ("missing", "0"),
            *([("carried", _carried(self.carried))] if self.to == "moco" else []),
            ("dropped", str(len(self.dropped))),
        ]
        lines = [f"{title:<13} {text}" for title, text in rows]
        lines += [
            f"{'':<13} {count} x {why}"
            for why, count in Counter(self.dropped.values()).most_common()
        ]
        verdict = (
            str(self.verification)
            if self.verification
            else "not verified (asked not to, or larger than 1 GB)"
        )
        return "\n".join([*lines, f"{'features':<13} {verdict}"])


def _carried(carried: Mapping[str, str]) -> str:
    """Return in words what goes along with the trained backbone into the official layout."""
    kinds = Counter(name.removeprefix(MODULE).split(".")[0] for name in carried.values())
    titles = {
        "encoder_q": "head",
        "encoder_k": "key encoder",
        "queue": "queue",
        "queue_ptr": "queue's pointer",
    }
    found = [f"{titles[kind]} ({kinds[kind]})" for kind in titles if kinds[kind]]
    return (
        f"{len(carried)}: {', '.join(found)}"
        if found
        else "0: the source has no head, key encoder or queue of MoCo's"
    )


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
    key = (
        read_source(content, encoder="k", source_format=source_format)
        if has_key_encoder(carried)
        else None
    )
    if key is not None:
        check_source(key, arch, src)
    beside = {there: content.tensors[here] for here, there in carried.items()}
    stamp = make_stamp(content, source, arch=arch, sha256=sha256_of(src))
    _check_network(source, stamp, src, to)
    verify = src.stat().st_size <= VERIFY_UP_TO if verify is None else verify
    try:
        with atomic_path(dst) as tmp:
            names = write(tmp, source.state, stamp, to=to, beside=beside)
            verification = _verify(source, key, beside, tmp, stamp, dst, verify) if verify else None
            sha256 = sha256_of(tmp)
    except OSError as error:  # a full disk, for one
        raise InputError(
            f"Cannot write {dst}: {error.strerror or error}; nothing was changed."
        ) from error
    report = ConversionReport(
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
    logger.info("Converted %s to %s (%s): %d tensors", src, dst, to, len(report.mapped))
    return report


def _check_network(source: Source, stamp: Mapping[str, Any], src: Path, to: str) -> None:
    """Refuse what the target's network would compute otherwise or lacks; warn of what the file does
    not say.
    """
    if to == "timm" and stamp["arch"] in WIDENED:
        raise InputError(
            f"timm has no {stamp['arch']}, whose stem is wider than 64 channels; --to torchvision"
            " writes the same tensors."
        )
    if any("(fused" in name for name in source.names.values()):
        logger.warning(
            "%s: its batch norms are fused into scale and shift; keep them frozen"
            " (MODEL.RESNETS.NORM FrozenBN)",
            src,
        )
    if to == "detectron2":
        return
    if to == "moco":
        warn_of_what_the_official_code_assumes(stamp, src)
    if stamp["stride_in_1x1"] is None:
        logger.warning(
            "%s does not say where its strides are; a %s ResNet has them in the 3x3 convolutions"
            " (STRIDE_IN_1X1 False)",
            src,
            to,
        )
    elif stamp["stride_in_1x1"]:
        raise InputError(
            f"{src} has its strides in the 1x1 convolutions (STRIDE_IN_1X1 True), which no {to}"
            " ResNet has: its features there would differ; only --to detectron2 can hold it."
        )


def check_source(source: Source, arch: str, path: object) -> None:
    """Account for every tensor of an encoder.

    Raises:
        InputError: If one is missing, unused, misshapen, no floating-point number or not finite;
            the message names them.
    """
    if has_small_stem(source.state):
        raise InputError(
            f"{path} is a {arch} for small images, as for CIFAR: {source.names['conv1.weight']}"
            f" is {tuple(source.state['conv1.weight'].shape)}, a 3x3 convolution of stride 1, but"
            " the stem of a detector is 7x7 with stride 2 (as in torchvision and timm), so it"
            f" cannot become a backbone; pre-train {arch} itself, with the 7x7 stem."
        )
    name_there = WRITE_NAME[source.layout.naming]
    have: dict[str, Any] = {source.names[name]: tensor for name, tensor in source.state.items()}
    have.update({name: () for name in source.unknown})
    expected = {
        source.names.get(name, f"{source.prefix}{name_there(name)}"): shape
        for name, shape in backbone_shapes(arch).items()
    }
    covered = coverage(have, expected)
    if not covered.is_complete:
        raise InputError(
            covered.sentence(
                path,
                arch,
                advice="Refusing to write a partly random backbone; nothing was written.",
            )
        )
    weights = {
        source.names[name]: tensor
        for name, tensor in source.state.items()
        if not name.endswith(BATCH_COUNTER)
    }
    integer = [name for name, tensor in weights.items() if not tensor.dtype.is_floating_point]
    if integer:
        raise InputError(
            f"{path}: {_some(integer)} of type {weights[integer[0]].dtype}, expected floating-point"
            " weights."
        )
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise InputError(
            f"{path}: {_some(broken)} with NaN or infinite values; the training diverged: take an"
            " earlier checkpoint."
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 5 else ''})"


def _check_arguments(src: Path, dst: Path, to: str, arch: str | None, encoder: str) -> None:
    if to not in TARGETS:
        raise InputError(f"Unknown target {to!r}; known: {', '.join(TARGETS)}.")
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
    others: dict[str, str] = {}
    for target, suffixes in SUFFIXES.items():
        others |= {suffix: target for suffix in suffixes if target != to and suffix not in others}
    if (
        dst.suffix in others and dst.suffix not in SUFFIXES[to]
    ):  # Detectron2 and timm choose their reader by it
        raise InputError(
            f"{dst} has the ending of a {others[dst.suffix]} file, expected"
            f" {' or '.join(SUFFIXES[to])} for --to {to}; rename it, or pass --to"
            f" {others[dst.suffix]}."
        )


def _verify(
    source: Source,
    key: Source | None,
    beside: Mapping[str, Tensor],
    written: Path,
    stamp: Mapping[str, Any],
    dst: Path,
    verify: bool | str | os.PathLike[str],
) -> Verification:
    """Compare the source in its own network with the file written, read back, in its own network;
    what is carried along bit by bit.
    """
    image = generated_image() if verify is True else real_image(verify, stamp)
    shown = {} if verify is True else {"image": os.fspath(verify)}
    content = read_checkpoint(written)
    found = None
    for encoder, before in (("q", source), ("k", key)):
        if before is not None:
            after = read_source(content, encoder=encoder)
            here = compare(
                _features(before, stamp, image), _features(after, stamp, image), path=dst, **shown
            )
            found = here if found is None else found.worst(here)
    _compare_bits(beside, content, dst)
    return found


def _compare_bits(beside: Mapping[str, Tensor], content: Content, dst: Path) -> None:
    for name, tensor in beside.items():
        there = content.tensors.get(f"state_dict.{name}")
        if there is None or not torch.equal(tensor.to(there.dtype), there):
            raise InputError(f"Not written: {name} of {dst} would differ from its source.")


def _features(source: Source, stamp: Mapping[str, Any], image: Tensor) -> dict[str, Tensor]:
    if (
        source.layout.naming == "detectron2"
    ):  # by the names in the file, so that no map is taken on trust
        weights = {source.own_names[name]: tensor for name, tensor in source.state.items()}
        return detectron2_features(weights, image, stride_in_1x1=bool(stamp["stride_in_1x1"]))
    return torchvision_features(source.state, image, arch=stamp["arch"])
