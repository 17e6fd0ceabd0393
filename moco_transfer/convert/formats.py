"""Recognise whose checkpoint a file is, and take an encoder out of it under torchvision's names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models.resnets import BATCH_NORM_EPS
from ..runtime.errors import InputError, did_you_mean
from .key_maps import READ_NAME
from .layouts import AVERAGES, CONTAINERS, HEADS, LAYOUTS, OUTSIDE, Layout
from .read import Content, listed

OUR_FORMAT = "moco_transfer.pretrain/1"  # the ``format`` entry of our own checkpoints
MIN_TENSORS = 8  # of one naming under one prefix make a ResNet; ResNet-18 has 100

_PART = r"(?:conv[123]|bn[123]|downsample\.[01])\.\w+"
_FINGERPRINT = {
    naming: re.compile(r"(?P<prefix>(?:.+\.)?)" + pattern)
    for naming, pattern in {
        "torchvision": rf"layer[1-4]\.\d+\.{_PART}",
        "detectron2": r"res[2-5]\.\d+\.(?:conv[123]|shortcut)(?:\.norm)?\.\w+",
        "sequential": rf"[4-7]\.\d+\.{_PART}",
        "huggingface": r"encoder\.stages\.[0-3]\.layers\.\d+\.(?:layer\.[012]|shortcut)\.\w+\.\w+",
        "caffe2": r"res[2-5]_\d+_branch(?:1|2[abc])\w*",
    }.items()
}
_CONTAINER = re.compile(rf"^(?:(?:{'|'.join(CONTAINERS)})\.)+")
_AVERAGE = re.compile(rf"(?:{'|'.join(AVERAGES)})\.")
_SUFFIXED = re.compile(r"^(\w+)_state_dict\.")
_WRAPPER = re.compile(r"(^|(?<=\.))(?:module|_orig_mod)\.")
# Detectron2's C4 detectors keep res5 in the head; res5.norm is Res5ROIHeadsExtraNorm's.
_HEAD_BLOCK = re.compile(r"res5\.\d+\.")


@dataclass(frozen=True)
class Source:
    """A place in a checkpoint where an encoder lies, and the encoder once it is taken out."""

    layout: Layout
    naming: str  # key of READ_NAME: how the file names the encoder's tensors
    prefix: str  # what stands before each of these names
    role: str  # q or k
    is_ours: bool = False  # whether this program's ``pretrain`` wrote the file
    # torchvision's name -> tensor, BN's counters included; full name in the file; without prefix.
    state: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    own_names: dict[str, str] = field(default_factory=dict)
    # Full names under the prefix that are neither backbone nor a known head.
    unknown: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)  # full name -> why it is not taken

    @property
    def format(self) -> str:
        """The layout's name for the stamp."""
        return "moco_transfer" if self.is_ours else self.layout.format

    @property
    def title(self) -> str:
        """The project whose checkpoint it is, in words."""
        return "moco-transfer" if self.is_ours else self.layout.title

    @property
    def encoder(self) -> str | None:
        """The role; None where the layout knows one encoder only."""
        return self.role if self.layout.key or self.role == "k" else None

    def own_name(self, name: str) -> str | None:
        """Return a tensor's name without the prefix; None for one outside of the encoder."""
        prefix = self.prefix
        if self.naming == "detectron2" and prefix.endswith("backbone."):
            head = prefix.removesuffix("backbone.") + "roi_heads."
            if name.startswith(head) and _HEAD_BLOCK.match(name.removeprefix(head)):
                prefix = head
        return name[len(prefix) :] if name.startswith(prefix) else None


def read_source(
    content: Content, *, encoder: str = "q", source_format: str | None = None
) -> Source:
    """Take an encoder out of a checkpoint.

    ``encoder``: "q" for the trained one, "k" for the one that follows it. ``source_format``: a
    layout's name, or the prefix of the encoder's names in the file; None to recognise it.
    InputError if the file fits no layout, or two that differ, or lacks the encoder.
    """
    if encoder not in ("q", "k"):
        raise InputError(f"encoder must be 'q' (trained) or 'k' (momentum), got {encoder!r}.")
    places = find_prefixes(content.tensors)
    readings = _readings(content, places, source_format)
    if not readings:
        raise _no_reading(content, [prefix for _, prefix in places], source_format)
    fits = [reading for reading in readings if reading.role == encoder]
    if not fits:
        has = readings[0]
        raise InputError(
            f"{content.path} ({has.layout.title}) has no encoder {encoder!r}, only {has.role!r}"
            f" under {has.prefix!r}; pass --encoder {has.role}."
        )
    # In order of preference.
    best, *others = (_take(content, fit, [prefix for _, prefix in places]) for fit in fits)
    for other in others:
        if best.state.keys() != other.state.keys() or not all(
            torch.equal(tensor, other.state[name]) for name, tensor in best.state.items()
        ):
            one, two = best.layout.format, other.layout.format
            raise InputError(
                f"{content.path} can be read as {one} (under {best.prefix!r}) and as {two} (under"
                f" {other.prefix!r}), which differ; pass one of these names or prefixes as --from."
            )
    return best


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
    """Return a prefix without wrappers, and whether it lies in a moving average's dict."""
    bare = _CONTAINER.sub("", prefix, count=1)
    average = _AVERAGE.match(bare)
    bare = _WRAPPER.sub("", bare[average.end() :]) if average else _SUFFIXED.sub(r"\1.", bare)
    bare = _CONTAINER.sub("", bare, count=1) if average else bare
    return _WRAPPER.sub("", bare), average is not None


def _readings(
    content: Content, places: list[tuple[str, str]], source_format: str | None
) -> list[Source]:
    """Return every way to read the file; the marked layouts alone when one of them fits."""
    for naming, prefix in places:
        if source_format and prefix == source_format:  # --from may name the place itself
            title = f"a ResNet under {prefix!r}"
            layout = Layout("prefix", title, (prefix,), namings=(naming,))
            return [Source(layout, naming, prefix, role) for role in ("q", "k")]
    if source_format is not None and source_format not in known_formats():
        hint = did_you_mean(source_format, known_formats())
        raise InputError(
            f"Unknown source format {source_format!r}.{hint} Known: {', '.join(known_formats())}"
            " and prefixes in the file."
        )
    texts = [f"{k}={v}" for k, v in content.top.items() if isinstance(v, str) and len(v) < 100]
    lines = [*content.tensors, *texts, f"container={content.container}"]
    found: list[Source] = []
    for layout in LAYOUTS:
        if source_format == layout.format or (source_format is None and layout.fits(lines)):
            found += _readings_as(layout, places)
    marked = [reading for reading in found if reading.layout.marker]
    return marked if marked and source_format is None else found


def _readings_as(layout: Layout, places: list[tuple[str, str]]) -> list[Source]:
    """Return the places that one layout explains, its preferred prefix first."""
    prefixes = layout.prefixes
    found = []
    for naming, prefix in places:
        bare, is_average = _normal(prefix)
        role = "q" if bare in layout.query and not is_average else "k"
        if naming in layout.namings and bare in (layout.query if is_average else prefixes):
            found.append((prefixes.index(bare), Source(layout, naming, prefix, role)))
    return [reading for _, reading in sorted(found, key=lambda one: one[0])]


def _no_reading(content: Content, places: list[str], source_format: str | None) -> InputError:
    layouts = [layout for layout in LAYOUTS if source_format in (None, layout.format)]
    known = sorted({repr(prefix) for layout in layouts for prefix in layout.prefixes})
    if source_format is not None:
        what = f"is not in the layout {source_format!r}: no ResNet under {' or '.join(known)}"
    elif not places:
        what = f"holds no ResNet: none of its {len(content.tensors)} tensors has a ResNet's name"
    else:
        what = (
            f"is in no known layout: it has a ResNet under {', '.join(map(repr, places))}, expected"
            f" one of {', '.join(known)}; to read it anyway, pass --from {places[0]!r}"
        )
    first = listed((name[:80] for name in content.tensors), 3)
    return InputError(f"{content.path} {what}. First keys: {first}")


def _take(content: Content, reading: Source, places: list[str]) -> Source:
    own_format = str(content.top.get("format", ""))
    is_ours = own_format.startswith(OUR_FORMAT.rstrip("1"))
    if is_ours and own_format != OUR_FORMAT:
        what = f"has format {own_format[:80]!r}, this version reads {OUR_FORMAT}"
        raise InputError(f"{content.path} {what}; update moco-transfer.")
    others = tuple(prefix for prefix in places if prefix not in ("", reading.prefix))
    inside = tuple(prefix for prefix in others if prefix.startswith(reading.prefix))
    source = Source(reading.layout, reading.naming, reading.prefix, reading.role, is_ours)
    for full_name, tensor in content.tensors.items():
        own = None if full_name.startswith(inside) else reading.own_name(full_name)
        if own is None:
            other = next((prefix for prefix in others if full_name.startswith(prefix)), None)
            where = f"outside of {source.prefix!r}"
            where = f"the other encoder, under {other!r}" if other else where
            source.dropped[full_name] = _why(full_name, OUTSIDE) or where
        elif name := READ_NAME[reading.naming](own):
            source.state[name] = tensor
            source.names[name], source.own_names[name] = full_name, own
        elif reason := _why(own, HEADS) or _why_bias(own, tensor, reading.naming):
            source.dropped[full_name] = reason
        else:
            source.unknown.append(full_name)
    if reading.naming == "caffe2":
        _fill_fused_norms(source)
    return source


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
    """Complete, in place, the norms that Caffe2 fused into scale and shift: mean 0, var 1 - eps."""
    state = source.state
    for name in [n for n in state if n.endswith(".weight")]:
        norm = name.removesuffix("weight")
        mean, var = f"{norm}running_mean", f"{norm}running_var"
        if f"{norm}bias" in state and mean not in state and var not in state:
            state[mean] = torch.zeros_like(state[name])
            state[var] = torch.ones_like(state[name]) - BATCH_NORM_EPS
            for filled in (mean, var):
                source.names[filled] = f"{source.names[name]} (fused: {filled.split('_')[-1]})"
                source.own_names[filled] = ""
