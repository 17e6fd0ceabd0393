"""``--json``: what a verb found as one document, which is all that stdout then has."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def json_alone(args: argparse.Namespace) -> Iterator[None]:
    """With ``--json`` print ``args.facts``, set by the block, in place of what the block prints.

    Progress, warnings and errors go to stderr as ever; a block that fails prints no document.
    """
    if not getattr(args, "json", False):
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()):
        yield
    # ASCII: a name that is no UTF-8, and a terminal without UTF-8, still give valid JSON.
    print(json.dumps(plain(args.facts), indent=1, allow_nan=False))


def plain(value: Any) -> Any:
    """Return a value as JSON has it: null for NaN and infinity, texts for paths, lists for tuples
    and objects for dataclasses, without the fields that their ``repr`` leaves out.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):  # numpy's too
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        shown = (field.name for field in dataclasses.fields(value) if field.repr)
        return {name: plain(getattr(value, name)) for name in shown}
    return str(value)
