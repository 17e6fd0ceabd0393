"""Recognise whose checkpoint a file is by its keys, and take the encoder asked for out of it under
torchvision's names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moco_transfer.runtime.errors import InputError, did_you_mean

from .caffe2 import fill_fused_norms, why_bias_is_dropped
from .key_maps import READ_NAME
from .layouts import BESIDE, HEADS, LAYOUTS, Layout
from .read import Content

OURS = "moco_transfer.pretrain/"
"""How the ``format`` entry of our own checkpoints begins; a version number follows."""

OUR_VERSION = 1

MIN_TENSORS = 8
"""Names of one naming under one prefix that make a ResNet of it; ResNet-18 has 100."""

_PLACE = r"(?P<prefix>(?:.+\.)?)"
_FINGERPRINT = {
    "torchvision": re.compile(
        _PLACE + r"layer[1-4]\.\d+\.(?:conv[123]|bn[123]|downsample\.[01])\.\w+"
    ),
    "detectron2": re.compile(_PLACE + r"res[2-5]\.\d+\.(?:conv[123]|shortcut)(?:\.norm)?\.\w+"),
    "sequential": re.compile(_PLACE + r"[4-7]\.\d+\.(?:conv[123]|bn[123]|downsample\.[01])\.\w+"),
    "caffe2": re.compile(_PLACE + r"res[2-5]_\d+_branch(?:1|2[abc])\w*"),
}
# The keys of outer dicts; VISSL's lies five deep.
_CONTAINER = re.compile(
    r"(?:(?:classy_state_dict|base_model|loss|checkpoint|state_dict|model_state_dict|model_state|model|net|blobs)\.)+"
)
_AVERAGE = re.compile(r"(?:state_dict_ema|model_ema|ema_state_dict|ema_model|ema)\.")
_SUFFIXED = re.compile(r"^(\w+)_state_dict\.")
# Not the norm behind them, which Res5ROIHeadsExtraNorm adds to the head.
_HEAD_BLOCK = re.compile(r"res5\.\d+\.")
_WRAPPER = re.compile(r"(^|(?<=\.))(?:module|_orig_mod)\.")


@dataclass(frozen=True)
class Reading:
    """One way to read a file: which layout, and under which full prefix its encoder lies."""

    layout: Layout
    prefix: str
    role: str


@dataclass(frozen=True)
class Source:
    """An encoder taken out of a checkpoint.

    Attributes:
        layout: Whose checkpoint it is.
        format: The layout's name for the stamp; "moco_transfer" for our own checkpoints.
        prefix: What stands before the encoder's names in the file.
        encoder: "q" or "k"; None where the layout knows one encoder only.
        state: torchvision's name -> tensor, BN's counters included.
        names: torchvision's name -> full name in the file.
        own_names: torchvision's name -> the file's name without its prefix.
        unknown: Full names under the prefix that are neither backbone nor a known head.
        dropped: Full name -> why it is not taken.
    """

    layout: Layout
    format: str
    prefix: str
    encoder: str | None
    state: dict[str, Tensor]
    names: dict[str, str]
    own_names: dict[str, str]
    unknown: tuple[str, ...]
    dropped: dict[str, str]

    @property
    def title(self) -> str:
        """The project whose checkpoint it is, in words."""
        return "moco-transfer" if self.format == "moco_transfer" else self.layout.title


def read_source(
    content: Content, *, encoder: str = "q", source_format: str | None = None
) -> Source:
    """Take an encoder out of a checkpoint.

    Args:
        content: The file.
        encoder: "q" for the encoder that was trained, "k" for the one that follows it.
        source_format: A layout's name, or the full prefix of the encoder's names in the file, for a
            file that can be read in several ways or in none; None to recognise it.

    Raises:
        InputError: If the file fits no layout, fits two that give different tensors, or lacks the
            encoder asked for.
    """
    if encoder not in ("q", "k"):
        raise InputError(f"encoder must be 'q' (trained) or 'k' (momentum), got {encoder!r}.")
    reading = _choose(_readings(content, source_format), content, encoder, source_format)
    return _take(content, reading)


def known_formats() -> tuple[str, ...]:
    """Return the names that ``source_format`` and ``--from`` take."""
    return tuple(dict.fromkeys(layout.format for layout in LAYOUTS))


def find_prefixes(names: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (naming, full prefix) of every ResNet among the names of a file, in the order of the
    file.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for name in names:
        for naming, pattern in _FINGERPRINT.items():
            match = pattern.fullmatch(name)
            if match:
                counts[naming, match["prefix"]] += 1
    return [place for place, count in counts.items() if count >= MIN_TENSORS]


def _normal(prefix: str) -> tuple[str, bool]:
    """Return a prefix without its wrappers, and whether it lies in a moving average's dict."""
    bare = _CONTAINER.sub("", prefix, count=1) if _CONTAINER.match(prefix) else prefix
    average = _AVERAGE.match(bare)
    bare = _WRAPPER.sub("", bare[average.end() :]) if average else _SUFFIXED.sub(r"\1.", bare)
    if average and _CONTAINER.match(bare):
        bare = _CONTAINER.sub("", bare, count=1)
    return _WRAPPER.sub("", bare), average is not None


def _readings(content: Content, source_format: str | None) -> list[Reading]:
    """Return every way to read the file; the marked layouts alone when one of them fits."""
    places = find_prefixes(content.tensors)
    for naming, prefix in places:
        if source_format and prefix == source_format:  # --from may name the place itself
            title = f"a ResNet under {prefix!r}"
            return [
                Reading(Layout("prefix", title, naming, (_normal(prefix)[0],)), prefix, role)
                for role in ("q", "k")
            ]
    if source_format is not None and source_format not in known_formats():
        hint = did_you_mean(source_format, known_formats())
        raise InputError(
            f"Unknown source format {source_format!r}.{hint} Known: {', '.join(known_formats())},"
            " or the prefix of a ResNet in the file."
        )
    lines = _lines(content)
    found = []
    for layout in LAYOUTS:
        if source_format == layout.format or (source_format is None and layout.fits(lines)):
            here = [
                reading
                for naming, prefix in places
                if (reading := _reading(layout, naming, prefix))
            ]
            found += sorted(here, key=_preference)
    marked = [reading for reading in found if reading.layout.marker]
    return marked if marked and source_format is None else found


def _reading(layout: Layout, naming: str, prefix: str) -> Reading | None:
    bare, is_average = _normal(prefix)
    if naming != layout.naming:
        return None
    if bare in layout.query:
        return Reading(layout, prefix, "k" if is_average else "q")
    return Reading(layout, prefix, "k") if bare in layout.key and not is_average else None


def _lines(content: Content) -> list[str]:
    texts = [
        f"{key}={value}"
        for key, value in content.top.items()
        if isinstance(value, str) and len(value) < 100
    ]
    return [*content.tensors, *texts, f"container={content.container}"]


def _choose(
    readings: list[Reading], content: Content, encoder: str, source_format: str | None
) -> Reading:
    if not readings:
        raise InputError(_no_reading(content, source_format))
    fits = [reading for reading in readings if reading.role == encoder]
    if not fits:
        has = readings[0]
        raise InputError(
            f"{content.path} ({has.layout.title}) has no encoder {encoder!r}, only {has.role!r}"
            f" under {has.prefix!r}; pass --encoder {has.role}."
        )
    best, *others = fits  # in order of preference
    for other in others:
        if other.prefix != best.prefix and not _same_tensors(content, best, other):
            raise InputError(
                f"{content.path} can be read in two ways: as {best.layout.format} (under"
                f" {best.prefix!r}) and as {other.layout.format} (under {other.prefix!r}), and"
                f" their tensors differ; pass --from {_from(best, other)} or --from"
                f" {_from(other, best)}."
            )
    return best


def _from(reading: Reading, other: Reading) -> str:
    return (
        reading.layout.format
        if reading.layout.format != other.layout.format
        else repr(reading.prefix)
    )


def _preference(reading: Reading) -> int:
    bare, _ = _normal(reading.prefix)
    order = reading.layout.query + reading.layout.key
    return order.index(bare)


def _same_tensors(content: Content, one: Reading, other: Reading) -> bool:
    left, right = (
        {
            name[len(reading.prefix) :]: tensor
            for name, tensor in content.tensors.items()
            if name.startswith(reading.prefix)
        }
        for reading in (one, other)
    )
    read = READ_NAME[one.layout.naming]
    left, right = (
        {name: tensor for name, tensor in side.items() if read(name)} for side in (left, right)
    )
    return left.keys() == right.keys() and all(
        torch.equal(tensor, right[name]) for name, tensor in left.items()
    )


def _no_reading(content: Content, source_format: str | None) -> str:
    path = content.path
    places = find_prefixes(content.tensors)
    names = list(content.tensors)
    first = ", ".join(name[:80] for name in names[:3]) + (", …" if len(names) > 3 else "")
    if source_format is not None:
        layouts = [layout for layout in LAYOUTS if layout.format == source_format]
        prefixes = " or ".join(
            dict.fromkeys(
                repr(prefix) for layout in layouts for prefix in layout.query + layout.key
            )
        )
        return (
            f"{path} is not in the layout {source_format!r}: no ResNet under {prefixes}. First"
            f" keys: {first}"
        )
    if not places:
        return (
            f"{path} holds no ResNet: none of its {len(names)} tensors has a ResNet's name. First"
            f" keys: {first}"
        )
    where = ", ".join(repr(prefix) for _, prefix in places)
    known = sorted({repr(prefix) for layout in LAYOUTS for prefix in layout.query + layout.key})
    return (
        f"{path} is in no known layout: it has a ResNet under {where}, expected one of"
        f" {', '.join(known)}, also behind 'module.' or 'state_dict.'. First keys: {first}. If it"
        f" is a ResNet of torchvision's, pass --from {places[0][1]!r}."
    )


def _take(content: Content, reading: Reading) -> Source:
    others = tuple(
        prefix for _, prefix in find_prefixes(content.tensors) if prefix not in ("", reading.prefix)
    )
    inside = tuple(prefix for prefix in others if prefix.startswith(reading.prefix))
    state: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    own_names: dict[str, str] = {}
    unknown: list[str] = []
    dropped: dict[str, str] = {}
    for full_name, tensor in content.tensors.items():
        prefix = None if full_name.startswith(inside) else _prefix_of(full_name, reading)
        if prefix is None:
            dropped[full_name] = _why(full_name, BESIDE) or _outside(
                full_name, reading.prefix, others
            )
            continue
        own = full_name[len(prefix) :]
        name = READ_NAME[reading.layout.naming](own)
        if name is not None:
            state[name], names[name], own_names[name] = tensor, full_name, own
        elif why := _why(own, HEADS) or _bias(own, tensor, reading):
            dropped[full_name] = why
        else:
            unknown.append(full_name)
    if reading.layout.naming == "caffe2":
        fill_fused_norms(state, names)
        own_names = {name: own_names.get(name, "") for name in state}
    own_format = str(content.top.get("format", ""))
    if own_format.startswith(OURS) and own_format != f"{OURS}{OUR_VERSION}":
        raise InputError(
            f"{content.path} has format {own_format[:80]!r}, this version reads"
            f" {OURS}{OUR_VERSION}; update moco-transfer."
        )
    return Source(
        layout=reading.layout,
        format="moco_transfer" if own_format.startswith(OURS) else reading.layout.format,
        prefix=reading.prefix,
        encoder=reading.role if reading.layout.key or reading.role == "k" else None,
        state=state,
        names=names,
        own_names=own_names,
        unknown=tuple(unknown),
        dropped=dropped,
    )


def _bias(own: str, tensor: Tensor, reading: Reading) -> str | None:
    return why_bias_is_dropped(own, tensor) if reading.layout.naming == "caffe2" else None


def _outside(full_name: str, prefix: str, others: tuple[str, ...]) -> str:
    other = next((other for other in others if full_name.startswith(other)), None)
    return f"outside of {prefix!r}" if other is None else f"the other encoder, under {other!r}"


def _prefix_of(full_name: str, reading: Reading) -> str | None:
    """Return the encoder's prefix that a name has; Detectron2's C4 detectors keep res5 in the head."""
    if reading.layout.naming == "detectron2" and reading.prefix.endswith("backbone."):
        head = reading.prefix[: -len("backbone.")] + "roi_heads."
        if _HEAD_BLOCK.match(full_name.removeprefix(head)) and full_name.startswith(head):
            return head
    return reading.prefix if full_name.startswith(reading.prefix) else None


def _why(name: str, reasons: Mapping[str, str]) -> str | None:
    return next((why for pattern, why in reasons.items() if re.fullmatch(pattern, name)), None)
