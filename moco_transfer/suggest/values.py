"""Config values with their reasons, and their YAML; a value that the user set wins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FIXED = yaml.safe_load(Path(__file__).with_name("fixed.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Value:
    """The value of a config key, and the reason for it."""

    value: Any
    reason: str


class Choices(dict[str, Value]):
    """The values of one config by key, in the order in which the rules choose them."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.given = given  # the user's, by key

    def take(self, key: str, value: Any, reason: str) -> Any:
        """Note a value, or the user's where there is one, and return the one that holds."""
        if key in self.given:
            reason = f"set by you; suggested is {_yaml(value)} ({reason})"
            value = self.given[key]
        self[key] = Value(value, reason)
        return value

    def take_fixed(self, section: str) -> None:
        """Note the values of a section of ``fixed.yaml``."""
        for key, (value, reason) in _FIXED[section].items():
            self.take(key, value, reason)

    def finished(self) -> Choices:
        """Return itself, with the user's values that no rule is about."""
        for key in self.given:
            self.setdefault(key, Value(self.given[key], "set by you"))
        return self

    def text(self, header: str) -> str:
        """Return the YAML, each value with its reason as a comment."""
        tree: dict[str, Any] = {}
        for key, value in self.items():
            node, (*sections, leaf) = tree, key.split(".")
            for section in sections:
                node = node.setdefault(section, {})
            node[leaf] = value
        return "\n".join([f"# {header}", *_lines(tree, ""), ""])


def power_of_two(limit: float) -> int:
    """Return the largest power of two that is at most ``limit``, at least 1."""
    return 1 << (max(1, int(limit)).bit_length() - 1)


def _lines(tree: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, node in tree.items():
        if isinstance(node, Value):
            yield f"{indent}{name}: {_yaml(node.value)}  # {node.reason}"
        else:
            yield f"{indent}{name}:"
            yield from _lines(node, f"{indent}  ")


def _yaml(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
