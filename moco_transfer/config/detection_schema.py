"""The detection config's defaults, read from ``detection_schema.yaml`` next to this file.

A config that loads here loads in an untouched ``detectron2.config.get_cfg()`` and the other way
round: one YAML serves both engines. With Detectron2 installed a test compares every key, value and
type with its config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Knows ``!tuple``: Detectron2 has tuples and lists, and a dump tells them apart."""


def _tuple(loader: _Loader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("!tuple", _tuple)
_FILE = Path(__file__).with_suffix(".yaml")

DETECTION_DEFAULTS: dict[str, Any] = yaml.load(_FILE.read_text(encoding="utf-8"), _Loader)
