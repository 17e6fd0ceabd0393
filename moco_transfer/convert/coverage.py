"""Which of a backbone's tensors a file provides: none may be missing, left over or of another
shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moco_transfer.models import BATCH_COUNTER

NAMES_SHOWN = 10
"""Names listed per kind in a sentence; the rest are counted."""

ADVICE = (
    "Refusing to start from a partly random backbone; re-run tools/convert.py or pass"
    " --allow-partial to record it in results.json."
)


@dataclass(frozen=True)
class Coverage:
    """The comparison of what a file has with what a backbone needs, name by name.

    Attributes:
        missing: Expected names that the file lacks.
        unused: Names in the file that nothing expects.
        misshapen: Name -> (shape in the file, shape expected) where the two differ.
        matched: Names present with the right shape.
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

    def sentence(self, path: object, arch: str, *, advice: str = ADVICE) -> str:
        """Return the coverage in words, with the names of what does not fit, for an error message.

        Args:
            path: The file, as the user named it.
            arch: The architecture that the names and shapes were expected from.
            advice: What follows from a gap; appended only when there is one.
        """
        wrong = [
            f"{name} is {got}, expected {want}" for name, (got, want) in self.misshapen.items()
        ]
        parts = [
            f"{path} covers {len(self.matched)} of {self.num_expected} backbone tensors of {arch}.",
            _counted("Missing", self.missing),
            _counted("Unused", self.unused),
        ]
        if wrong:
            parts.append(_counted("Misshapen", wrong))
        if not self.is_complete:
            parts.append(advice)
        return " ".join(parts)


def coverage(have: Mapping[str, Any], expected: Mapping[str, Any]) -> Coverage:
    """Compare what a file has with what a backbone needs.

    Args:
        have: Name -> array, tensor or shape.
        expected: Name -> array, tensor or shape. On both sides BN's ``num_batches_tracked`` counts
            for nothing.

    Returns:
        Every name of either side in exactly one of the four lists, in its own side's order.
    """
    got = {name: _shape(value) for name, value in have.items() if not name.endswith(BATCH_COUNTER)}
    want = {
        name: _shape(value) for name, value in expected.items() if not name.endswith(BATCH_COUNTER)
    }
    return Coverage(
        missing=tuple(name for name in want if name not in got),
        unused=tuple(name for name in got if name not in want),
        misshapen={
            name: (got[name], want[name])
            for name in want
            if name in got and got[name] != want[name]
        },
        matched=tuple(name for name in want if got.get(name) == want[name]),
    )


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(side) for side in getattr(value, "shape", value))


def _counted(title: str, names: tuple[str, ...] | list[str]) -> str:
    if not names:
        return f"{title} (0)."
    rest = len(names) - NAMES_SHOWN
    return f"{title} ({len(names)}): {', '.join(names[:NAMES_SHOWN])}" + (
        f", … and {rest} more." if rest > 0 else "."
    )
