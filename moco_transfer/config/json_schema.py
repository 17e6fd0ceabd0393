"""The JSON schema of a config, with which editors complete and check its keys.

It is made of what the loader reads: the schema file's defaults, whose types are checked, with its
comments as descriptions, and the legal values. It knows one file of a ``_BASE_`` chain alone, so
rules between keys are the loader's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .pretrain_schema import AT_LEAST, ONE_OF, PRETRAIN_DEFAULTS
from .schema_file import ALL_DEFAULTS, EXTENSION_KEYS, EXTENSIONS

DRAFT = "http://json-schema.org/draft-07/schema#"  # the newest that YAML's language server reads
# A text where YAML 1.1 knows no number or list: 1e-3, (18000, 22000).
_NUMBER = {"type": "string", "pattern": r"^[-+]?[0-9][0-9.]*[eE][-+]?[0-9]+$"}
_LIST = {"type": "string", "pattern": r"^\s*[(\[].*[)\]]\s*$"}
_LINE = re.compile(r"( *)(\w+):(?: (.*?))?(?: *# (.*))?")


def config_schema(kind: str) -> dict[str, Any]:
    """Return the schema of the configs that :func:`load_pretrain_config` ("pretrain") or
    :func:`load_detection_config` ("detection", with semantic segmentation and dense pose) reads.
    """
    is_pretrain = kind == "pretrain"
    names = ["pretrain_schema"] if is_pretrain else ["detection_schema", *EXTENSIONS]
    about = {key: text for name in names for key, text in _comments(name).items()}
    about |= {key: f"Needs {what}. {about.get(key, '')}" for key, what in EXTENSION_KEYS.items()}
    defaults = PRETRAIN_DEFAULTS if is_pretrain else ALL_DEFAULTS
    found = _section(defaults, "", about, (ONE_OF, AT_LEAST) if is_pretrain else ({}, {}))
    base = {"type": "string", "description": "The YAML file that this one changes."}
    found["properties"]["_BASE_"] = base
    return {"$schema": DRAFT, "title": f"moco-transfer, {kind} config", **found}


def _section(
    tree: Mapping[str, Any],
    path: str,
    about: Mapping[str, str],
    rules: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> dict[str, Any]:
    one_of, at_least = rules
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{path}{name}"
        if isinstance(value, Mapping) and value:
            entry = _section(value, f"{key}.", about, rules)
        else:
            entry = _leaf(value) | {"default": value}
            entry |= {"enum": list(one_of[key])} if key in one_of else {}
            entry |= {"minimum": at_least[key]} if key in at_least else {}
        found[name] = entry | ({"description": about[key].strip()} if about.get(key) else {})
    return {"type": "object", "properties": found, "additionalProperties": False}


def _leaf(value: Any) -> dict[str, Any]:
    """Return the schema of the values that may take a default's place."""
    if isinstance(value, (list, tuple)):
        items = _leaf(value[0]) if value else {}
        return {"anyOf": [{"type": "array", "items": items}, _LIST]}
    if isinstance(value, float):
        return {"anyOf": [{"type": "number"}, _NUMBER]}
    types = {bool: "boolean", int: "integer", str: "string", dict: "object"}
    return {"type": types[type(value)]} if type(value) in types else {}


def _comments(name: str) -> dict[str, str]:
    """Return full key -> the comment above it or behind it, in ``NAME.yaml``; a blank line parts a
    comment from the key below.
    """
    text = Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    above: list[str] = []
    sections: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.strip().startswith("#"):
            above.append(line.strip().removeprefix("#").strip())
            continue
        if match := _LINE.fullmatch(line):
            indent, key, _, behind = match.groups()
            sections = [item for item in sections if item[0] < len(indent)]
            sections.append((len(indent), key))
            if words := [*above, *([behind] if behind else [])]:
                found[".".join(key for _, key in sections)] = " ".join(words)
        above = []
    return found
