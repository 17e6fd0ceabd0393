"""Read a schema: the YAML file with every key of a config, its default and its meaning.

A detection config that loads here loads in an untouched ``detectron2.config.get_cfg()`` and the
other way round: one YAML serves both engines. With Detectron2 installed a test compares every key,
value and type with its config.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Knows ``!tuple``: Detectron2 has tuples and lists, and a dump tells them apart."""


_Loader.add_constructor(
    "!tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


def read_schema(name: str) -> dict[str, Any]:
    """Return the defaults in ``NAME.yaml`` next to this file, nested as in a config."""
    text = Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, _Loader)


def flatten_config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"SOLVER.BASE_LR": 0.02, …}``: every key of a config, by its full path."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten_config(value).items()}
        else:
            flat[key] = value
    return flat


DETECTION_DEFAULTS = read_schema("detection_schema")
