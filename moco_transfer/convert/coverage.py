"""Which of a backbone's tensors a file provides: none may be missing, left over or misshapen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..models.resnets import ARCHITECTURES, BATCH_COUNTER, backbone_shapes, has_small_stem
from ..runtime.errors import InputError
from .formats import Source
from .key_maps import WRITE_NAME
from .read import listed

ADVICE = (
    "Refusing to start from a partly random backbone; re-run tools/convert.py or pass"
    " --allow-partial to record it in results.json."
)


@dataclass(frozen=True)
class Coverage:
    """The comparison of what a file has with what a backbone needs, name by name.

    ``unused`` are names that nothing expects; ``misshapen``: name -> (shape there, expected).
    """

    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    matched: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """True when every expected tensor is matched and nothing is left over."""
        return not (self.missing or self.unused or self.misshapen)

    @property
    def num_expected(self) -> int:
        """Number of tensors that the backbone needs (265 for ResNet-50)."""
        return len(self.matched) + len(self.missing) + len(self.misshapen)

    def sentence(
        self, path: object, arch: str, *, part: str = "backbone", advice: str = ADVICE
    ) -> str:
        """Return the coverage of ``path`` in words; ``advice`` follows only a gap."""
        wrong = [f"{n} is {got}, expected {want}" for n, (got, want) in self.misshapen.items()]
        parts = [
            f"{path} covers {len(self.matched)} of {self.num_expected} {part} tensors of {arch}.",
            _counted("Missing", self.missing),
            _counted("Unused", self.unused),
            *([_counted("Misshapen", wrong)] if wrong else []),
            *([] if self.is_complete else [advice]),
        ]
        return " ".join(parts)


def coverage(have: Mapping[str, Any], expected: Mapping[str, Any]) -> Coverage:
    """Compare what a file has with what a backbone needs, each name -> array, tensor or shape.

    BN's ``num_batches_tracked`` is ignored on both sides.
    """
    got, want = (
        {
            name: tuple(int(side) for side in getattr(value, "shape", value))
            for name, value in side.items()
            if not name.endswith(BATCH_COUNTER)
        }
        for side in (have, expected)
    )
    return Coverage(
        missing=tuple(name for name in want if name not in got),
        unused=tuple(name for name in got if name not in want),
        misshapen={
            name: (got[name], shape)
            for name, shape in want.items()
            if got.get(name, shape) != shape
        },
        matched=tuple(name for name, shape in want.items() if got.get(name) == shape),
    )


def _counted(title: str, names: Sequence[str]) -> str:
    rest = f", … and {len(names) - 10} more" if len(names) > 10 else ""
    shown = f": {', '.join(names[:10])}{rest}" if names else ""
    return f"{title} ({len(names)}){shown}."


def source_coverage(source: Source, arch: str, channels: int = 3) -> Coverage:
    """Compare an encoder with the backbone ``arch`` for images of so many channels, under the names
    in the encoder's file.
    """
    name_there = WRITE_NAME[source.naming]
    have: dict[str, Any] = {source.names[name]: tensor for name, tensor in source.state.items()}
    return coverage(
        have | {name: () for name in source.unknown},
        {
            source.names.get(name, f"{source.prefix}{name_there(name)}"): shape
            for name, shape in backbone_shapes(arch, channels).items()
        },
    )


def check_source(source: Source, arch: str, path: object, channels: int = 3) -> None:
    """Raise an InputError that names missing, unused, misshapen, integer or non-finite tensors;
    ``channels``: of the images that the encoder takes.
    """
    if has_small_stem(source.state) and arch in ARCHITECTURES:
        raise InputError(
            f"{path} is a {arch} for small images, as for CIFAR: {source.names['conv1.weight']}"
            f" is {tuple(source.state['conv1.weight'].shape)}, but the stem of a detector is 7x7;"
            f" pre-train {arch} itself."
        )
    covered = source_coverage(source, arch, channels)
    if not covered.is_complete:
        raise InputError(covered.sentence(path, arch, advice="Refusing a partly random backbone."))
    weights = {n: t for n, t in source.state.items() if not n.endswith(BATCH_COUNTER)}
    integer = [source.names[n] for n, t in weights.items() if not t.dtype.is_floating_point]
    kinds = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in weights.values()}))
    empty = [source.names[n] for n, t in weights.items() if t.ndim == 4 and not bool(t.any())]
    broken = [source.names[n] for n, t in weights.items() if not bool(torch.isfinite(t).all())]
    for names, what in (
        (integer, f"are {kinds}, expected floating-point weights"),
        (empty, "are all zeros: the file was written before its weights were"),
        (broken, "have NaN or infinite values: the training diverged; take an earlier checkpoint"),
    ):
        if names:
            raise InputError(f"{path}: {len(names)} tensors ({listed(names)}) {what}.")
