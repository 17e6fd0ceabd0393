"""The options of each verb, read from verbs.yaml, and the types that check their values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

#: Verb -> its summary, description and options; ``shared`` -> options of several verbs.
DESCRIPTIONS: dict[str, dict[str, Any]] = yaml.load(
    (resources.files(__package__) / "verbs.yaml").read_text("utf-8"),
    Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),  # noqa: S506 - safe, ten times as fast
)
KEY = r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*"  # of a config: SEED, SOLVER.MAX_ITER
SEVERAL_PROCESSES = ("pretrain", "linear", "train")  # `benchmark` starts its runs itself


def _number(kind: Callable[[str], float], *, above: int) -> Callable[[str], Any]:
    def number(text: str) -> float:
        if not (value := kind(text)) > above:
            raise argparse.ArgumentTypeError(f"expected a number above {above}, got {value:g}")
        return value

    return number


_TYPES = {
    "count": _number(int, above=0),
    "natural": _number(int, above=-1),
    "positive": _number(float, above=0),
    "float": float,
    "path": Path,
}


def key_value(words: Sequence[str]) -> list[str]:
    """Return KEY VALUE words, of which some may be written as KEY=VALUE."""
    found: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        is_pair = len(found) % 2 == 0 and equals and re.fullmatch(f"([a-z]+\\.)?{KEY}", key)
        found += [key, value] if is_pair else [word]
    return found


def add_options(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add the options of a verb, in groups where verbs.yaml has groups."""
    for name, kind in _TYPES.items():
        parser.register("type", name, kind)
    parser.register("action", "boolean_optional", argparse.BooleanOptionalAction)
    described = DESCRIPTIONS[verb]
    for title, options in {"": described.get("options", {}), **described.get("groups", {})}.items():
        add = (parser.add_argument_group(title) if title else parser).add_argument
        for names, settings in options.items():
            add(*names.split(), **settings)
