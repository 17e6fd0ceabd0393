"""The JSON schema of a results.json, made of the keys that the report reads."""

from __future__ import annotations

from typing import Any

from .records import KEYS, SCHEMA

_TYPES: dict[str, dict[str, Any]] = {
    "a string": {"type": "string"},
    "an integer": {"type": "integer"},
    "a number": {"type": "number"},
    "a table": {"type": "object"},
    "a list": {"type": ["array", "string"]},
    "a list of names": {"type": "array", "items": {"type": "string"}},
    "true or false": {"type": "boolean"},
}
# Kind of result -> metric -> value on 0-100; with several test sets, below their names.
_METRICS = {
    "minProperties": 1,
    "additionalProperties": {
        "type": "object",
        "additionalProperties": {"type": ["number", "null", "object"]},
    },
}


def results_schema() -> dict[str, Any]:
    """Return the schema. Keys that the report does not read may hold anything."""
    top: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "moco-transfer, results.json of a fine-tuning run",
        "type": "object",
        "properties": {"schema": {"const": SCHEMA}},
        "required": ["schema"],
    }
    for key, (kind, *default) in KEYS.items():
        *sections, name = key.split(".")
        entry, place = dict(_TYPES[kind]), top
        for section in sections:
            place = place["properties"][section]
        if default:  # may be absent or null
            types = entry["type"] if isinstance(entry["type"], list) else [entry["type"]]
            entry |= {"type": [*types, "null"], "default": default[0]}
        else:
            place.setdefault("required", []).append(name)
        place.setdefault("properties", {})[name] = entry
    top["properties"]["metrics"] |= _METRICS
    top["properties"]["dataset"]["properties"]["test"]["minItems"] = 1
    return top
