"""Read a schema: the YAML file with every key of a config, its default and its meaning."""

from __future__ import annotations

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
