"""Recognise whose checkpoint a file is by its keys, and take an encoder out of it.

The tensors come out under torchvision's names.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import BATCH_NORM_EPS
from ..runtime.errors import InputError, did_you_mean
from .key_maps import READ_NAME
from .layouts import AVERAGES, BESIDE, CONTAINERS, HEADS, LAYOUTS, Layout
from .read import Content, listed

OUR_FORMAT = "moco_transfer.pretrain/1"
"""The ``format`` entry of our own checkpoints, with its version."""

MIN_TENSORS = 8
"""Names of one naming under one prefix that make a ResNet of it; ResNet-18 has 100."""

_PART = r"(?:conv[123]|bn[123]|downsample\.[01])\.\w+"
_FINGERPRINT = {
    naming: re.compile(r"(?P<prefix>(?:.+\.)?)" + pattern)
    for naming, pattern in {
        "torchvision": rf"layer[1-4]\.\d+\.{_PART}",
        "detectron2": r"res[2-5]\.\d+\.(?:conv[123]|shortcut)(?:\.norm)?\.\w+",
        "sequential": rf"[4-7]\.\d+\.{_PART}",
        "caffe2": r"res[2-5]_\d+_branch(?:1|2[abc])\w*",
    }.items()
}
_CONTAINER = re.compile(rf"(?:(?:{CONTAINERS})\.)+")
_AVERAGE = re.compile(rf"(?:{AVERAGES})\.")
_SUFFIXED = re.compile(r"^(\w+)_state_dict\.")
_WRAPPER = re.compile(r"(^|(?<=\.))(?:module|_orig_mod)\.")
# Detectron2's C4 detectors keep res5 in the head; res5.norm is Res5ROIHeadsExtraNorm's.
_HEAD_BLOCK = re.compile(r"res5\.\d+\.")


@dataclass(frozen=True)
class _Reading:
    """One way to read a file: its layout, and the full prefix under which the encoder lies."""

    layout: Layout
    naming: str
    prefix: str
    role: str

    @property
    def preference(self) -> int:
        return (self.layout.query + self.layout.key).index(_normal(self.prefix)[0])

    def own_name(self, name: str) -> str | None:
        """Return a tensor's name without the prefix; None for one outside of the encoder."""
        prefix = self.prefix
        if self.naming == "detectron2" and prefix.endswith("backbone."):
            head = prefix.removesuffix("backbone.") + "roi_heads."
            if name.startswith(head) and _HEAD_BLOCK.match(name.removeprefix(head)):
                prefix = head
        return name[len(prefix) :] if name.startswith(prefix) else None


@dataclass(frozen=True)
class Source:
    """An encoder taken out of a checkpoint.

    Attributes:
        layout: Whose checkpoint it is.
        naming: Key of READ_NAME: how the file names the encoder's tensors.
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
    naming: str
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
    readings = _readings(content, source_format)
    if not readings:
        raise InputError(_no_reading(content, source_format))
    return _take(content, _choose(readings, content, encoder))


def known_formats() -> tuple[str, ...]:
    """Return the names that ``source_format`` and ``--from`` take."""
    return tuple(dict.fromkeys(layout.format for layout in LAYOUTS))


def find_prefixes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return (naming, full prefix) of every ResNet among a file's names, in the file's order."""
    counts: Counter[tuple[str, str]] = Counter()
    for name in names:
        for naming, pattern in _FINGERPRINT.items():
            if match := pattern.fullmatch(name):
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


def _readings(content: Content, source_format: str | None) -> list[_Reading]:
    """Return every way to read the file; the marked layouts alone when one of them fits."""
    places = find_prefixes(content.tensors)
    for naming, prefix in places:
        if source_format and prefix == source_format:  # --from may name the place itself
            title = f"a ResNet under {prefix!r}"
            layout = Layout("prefix", title, (_normal(prefix)[0],), namings=(naming,))
            return [_Reading(layout, naming, prefix, role) for role in ("q", "k")]
    if source_format is not None and source_format not in known_formats():
        hint = did_you_mean(source_format, known_formats())
        raise InputError(
            f"Unknown source format {source_format!r}.{hint} Known: {', '.join(known_formats())},"
            " or the prefix of a ResNet in the file."
        )
    texts = [f"{k}={v}" for k, v in content.top.items() if isinstance(v, str) and len(v) < 100]
    lines = [*content.tensors, *texts, f"container={content.container}"]
    found: list[_Reading] = []
    for layout in LAYOUTS:
        if source_format == layout.format or (source_format is None and layout.fits(lines)):
            here = (_reading(layout, naming, prefix) for naming, prefix in places)
            found += sorted((r for r in here if r), key=lambda reading: reading.preference)
    marked = [reading for reading in found if reading.layout.marker]
    return marked if marked and source_format is None else found


def _reading(layout: Layout, naming: str, prefix: str) -> _Reading | None:
    bare, is_average = _normal(prefix)
    if naming not in layout.namings:
        return None
    if bare in layout.query:
        return _Reading(layout, naming, prefix, "k" if is_average else "q")
    is_key = bare in layout.key and not is_average
    return _Reading(layout, naming, prefix, "k") if is_key else None


def _choose(readings: list[_Reading], content: Content, encoder: str) -> _Reading:
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
            one, two = best.layout.format, other.layout.format
            options = (one, two) if one != two else (repr(best.prefix), repr(other.prefix))
            raise InputError(
                f"{content.path} can be read in two ways: as {one} (under {best.prefix!r}) and as"
                f" {two} (under {other.prefix!r}), and their tensors differ; pass --from"
                f" {options[0]} or --from {options[1]}."
            )
    return best


def _same_tensors(content: Content, one: _Reading, other: _Reading) -> bool:
    left, right = (
        {
            name.removeprefix(reading.prefix): tensor
            for name, tensor in content.tensors.items()
            if name.startswith(reading.prefix)
            and READ_NAME[one.naming](name.removeprefix(reading.prefix))
        }
        for reading in (one, other)
    )
    return left.keys() == right.keys() and all(
        torch.equal(tensor, right[name]) for name, tensor in left.items()
    )


def _no_reading(content: Content, source_format: str | None) -> str:
    places = [prefix for _, prefix in find_prefixes(content.tensors)]
    first = listed((name[:80] for name in content.tensors), 3)
    layouts = [layout for layout in LAYOUTS if source_format in (None, layout.format)]
    known = sorted({repr(prefix) for layout in layouts for prefix in layout.query + layout.key})
    if source_format is not None:
        return (
            f"{content.path} is not in the layout {source_format!r}: no ResNet under"
            f" {' or '.join(known)}. First keys: {first}"
        )
    if not places:
        return (
            f"{content.path} holds no ResNet: none of its {len(content.tensors)} tensors has a"
            f" ResNet's name. First keys: {first}"
        )
    return (
        f"{content.path} is in no known layout: it has a ResNet under"
        f" {', '.join(map(repr, places))}, expected one of {', '.join(known)}, also behind"
        f" 'module.' or 'state_dict.'. First keys: {first}. If it is a ResNet of torchvision's,"
        f" pass --from {places[0]!r}."
    )


def _take(content: Content, reading: _Reading) -> Source:
    own_format = str(content.top.get("format", ""))
    is_ours = own_format.startswith(OUR_FORMAT.rstrip("1"))
    if is_ours and own_format != OUR_FORMAT:
        raise InputError(
            f"{content.path} has format {own_format[:80]!r}, this version reads {OUR_FORMAT};"
            " update moco-transfer."
        )
    places = [prefix for _, prefix in find_prefixes(content.tensors)]
    others = tuple(prefix for prefix in places if prefix not in ("", reading.prefix))
    inside = tuple(prefix for prefix in others if prefix.startswith(reading.prefix))
    source = Source(
        layout=reading.layout,
        naming=reading.naming,
        format="moco_transfer" if is_ours else reading.layout.format,
        prefix=reading.prefix,
        encoder=reading.role if reading.layout.key or reading.role == "k" else None,
        **{"state": {}, "names": {}, "own_names": {}, "unknown": (), "dropped": {}},
    )
    unknown = []
    for full_name, tensor in content.tensors.items():
        own = None if full_name.startswith(inside) else reading.own_name(full_name)
        if own is None:
            why = _why(full_name, BESIDE) or _outside(full_name, reading.prefix, others)
            source.dropped[full_name] = why
        elif name := READ_NAME[reading.naming](own):
            source.state[name] = tensor
            source.names[name], source.own_names[name] = full_name, own
        elif why := _why(own, HEADS) or _why_bias(own, tensor, reading.naming):
            source.dropped[full_name] = why
        else:
            unknown.append(full_name)
    if reading.naming == "caffe2":
        _fill_fused_norms(source)
    return dataclasses.replace(source, unknown=tuple(unknown))


def _outside(full_name: str, prefix: str, others: tuple[str, ...]) -> str:
    other = next((other for other in others if full_name.startswith(other)), None)
    return f"outside of {prefix!r}" if other is None else f"the other encoder, under {other!r}"


def _why(name: str, reasons: Mapping[str, str]) -> str | None:
    return next((why for pattern, why in reasons.items() if re.fullmatch(pattern, name)), None)


def _why_bias(name: str, tensor: Tensor, naming: str) -> str | None:
    """Return why a convolution's bias in a Caffe2 file may be dropped; None where it counts."""
    if naming != "caffe2":
        return None
    if name == "conv1_b":
        return "bias of the first convolution, which Detectron2 leaves out as well"
    is_bias = re.fullmatch(r"res\d_\d+_branch(1|2[abc])_b", name)
    return "bias of a convolution, all zeros" if is_bias and not bool(tensor.any()) else None


def _fill_fused_norms(source: Source) -> None:
    """Complete, in place, the norms that Caffe2 fused into scale and shift.

    Mean 0 and variance 1 - eps make a batch norm just that.
    """
    state = source.state
    for name in [n for n in state if n.endswith(".weight")]:
        norm = name.removesuffix("weight")
        mean, var = f"{norm}running_mean", f"{norm}running_var"
        if f"{norm}bias" in state and mean not in state and var not in state:
            state[mean] = torch.zeros_like(state[name])
            state[var] = torch.ones_like(state[name]) - BATCH_NORM_EPS
            for filled, value in ((mean, "mean 0"), (var, "variance 1")):
                source.names[filled] = f"{source.names[name]} (fused: {value})"
                source.own_names[filled] = ""
