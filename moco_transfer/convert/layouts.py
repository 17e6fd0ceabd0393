"""The checkpoint layouts that can be read: what an entry of ``layouts.yaml`` means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Layout:
    """One project's way to store an encoder.

    Expressions are regular, "" for none, and are searched in the lines of a file: a tensor's full
    name, ``key=value`` of the outer dict, or ``container=torch``.
    """

    format: str  # the name for ``--from`` and for the stamp
    title: str  # the project, in words
    # Prefixes of the encoder "q", which is trained (query, online, student), preferred one first,
    # and of "k" (key, momentum, target, moving average).
    query: Sequence[str]
    key: Sequence[str] = ()
    namings: Sequence[str] = ("torchvision",)  # keys of key_maps.READ_NAME
    marker: str = ""  # an expression that some line must match
    unless: str = ""  # an expression that no line may match
    mechanism: str | None = None  # what it was trained with, None where the layout does not tell
    epoch: str = ""  # dotted path of the number of epochs finished, such as meta.epoch; "" for none

    @property
    def prefixes(self) -> list[str]:
        """All prefixes, the preferred ones first."""
        return [*self.query, *self.key]

    def fits(self, lines: Sequence[str]) -> bool:
        """Whether a file with these lines can have this layout."""
        is_marked = not self.marker or any(re.search(self.marker, line) for line in lines)
        is_other = self.unless and any(re.search(self.unless, line) for line in lines)
        return is_marked and not is_other


_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))

LAYOUTS = [Layout(**row) for row in _TABLES["layouts"]]
CONTAINERS: list[str] = _TABLES["containers"]
AVERAGES: list[str] = _TABLES["averages"]
HEADS: dict[str, str] = _TABLES["heads"]
OUTSIDE: dict[str, str] = _TABLES["outside"]
