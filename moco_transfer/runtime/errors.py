"""Errors that a user or a file can cause; every other exception is an error in this program.

The command line prints an ``InputError`` as one sentence and ends with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Unusable input; the message says what, where, expected and got, and what to do."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that the user named does not exist."""

    __str__ = ValueError.__str__  # OSError's would show errno and drop the sentence


class UnknownKeyError(InputError, KeyError):
    """A name (config key, data set, class) that does not exist; the message offers the nearest."""

    __str__ = ValueError.__str__  # KeyError's would put the sentence in quotes


class NotFiniteError(FloatingPointError):
    """A loss that is not finite, on all processes, in ``iteration``, the first such, from 1 on."""

    def __init__(self, message: str, iteration: int) -> None:
        super().__init__(message)
        self.iteration = iteration


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'X'?`` (with the blank) for the nearest legal name, or ``""``."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # the leaf alone may be right and its section wrong, or the case may differ
        leaf = name.rsplit(".", 1)[-1].lower()
        near = [k for k in known if k.rsplit(".", 1)[-1].lower() == leaf][:1]
    return f" Did you mean {near[0]!r}?" if near else ""


def damaged(path: object, reason: object) -> InputError:
    """Return the error for a file that is not whole; of a C++ stack trace the first line alone."""
    line = printable((str(reason).strip().splitlines() or [type(reason).__name__])[0][:120])
    return InputError(f"{path} is truncated or damaged ({line}); get it again.")


def printable(name: object) -> str:
    """Return a name of a key or file as one line of text, with what cannot be printed escaped."""
    text = str(name)
    if text.isprintable():
        return text
    # Python holds a byte of a file name that is no UTF-8 as U+DC80 to U+DCFF.
    return text.encode("unicode_escape").decode("ascii").replace("\\udc", "\\x")


class Faults:
    """Collects the input errors of independent checks, so that all are reported together."""

    def __init__(self) -> None:
        self.errors: list[InputError] = []

    def check(self, make: Callable[[], T]) -> T | None:
        """Return what ``make`` returns, or note its InputError and return None."""
        try:
            return make()
        except InputError as error:
            self.errors.append(error)
            return None

    def add(self, message: str) -> None:
        """Note a fault."""
        self.errors.append(InputError(message))

    def raise_all(self) -> None:
        """Raise the one error, or an InputError that lists all of them; do nothing without any."""
        if len(self.errors) == 1:
            raise self.errors[0]
        messages = list(dict.fromkeys(map(str, self.errors)))
        if messages:
            listed = "\n".join(f"  - {message}" for message in messages)
            raise InputError(f"{len(messages)} things to fix first:\n{listed}")
