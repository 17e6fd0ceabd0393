"""Errors that a user or a file can cause, as opposed to errors in this program.

The command line prints an ``InputError`` as its one sentence and ends with status 2. Every other
exception keeps its traceback, because it means that the program, not its input, is wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used; the message says what, where, expected and got, and what to do."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that the user named does not exist."""

    # OSError's own formatting would show errno and drop the sentence.
    __str__ = ValueError.__str__


class UnknownKeyError(InputError, KeyError):
    """A name (config key, data set, class) that does not exist; the message offers the nearest
    legal ones.
    """

    # KeyError prints the repr of its argument, which would put the sentence in quotes.
    __str__ = ValueError.__str__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'X'?`` for the legal name nearest to ``name``, or an empty string.

    Args:
        name: The name that was not found.
        known: All legal names.

    Returns:
        A sentence that starts with a blank, so that it can follow a full stop; empty when nothing
        is near.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # the leaf alone may be right and its section wrong, or the case may differ
        leaf = name.rsplit(".", 1)[-1].lower()
        near = [k for k in known if k.rsplit(".", 1)[-1].lower() == leaf][:1]
    return f" Did you mean {near[0]!r}?" if near else ""
