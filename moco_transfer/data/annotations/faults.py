"""Faults of annotations: a repeated one is one line, with its number."""

from __future__ import annotations

from collections import Counter

from ...runtime.errors import InputError
from .records import OnProblem


class Fault(Exception):
    """What is wrong with an entry of a file, without its place.

    Faults of one ``kind``, by default of one text, are repetitions of each other.
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind or text


class Faults:
    """Collects the faults of a data set."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, Fault]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, place: str, fault: Fault) -> None:
        """Take a fault of the entry at a place."""
        self._first.setdefault(fault.kind, (place, fault))
        self._counts[fault.kind] += 1

    def report(self, on_problem: OnProblem) -> None:
        """Report each kind of fault: its first place, how many more there are, what is wrong."""
        for kind, (place, fault) in self._first.items():
            more = f" and {self._counts[kind] - 1} more" if self._counts[kind] > 1 else ""
            on_problem(InputError(f"{place}{more}: {fault}"))


def short(value: object) -> str:
    """Return a value as a text of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
