"""Read a schema: the YAML file with every key of a config, its default and its meaning.

A detection config that loads here loads in an untouched ``detectron2.config.get_cfg()`` and the
other way round: one YAML serves both engines. With Detectron2 installed a test compares every key,
value and type with its config. Semantic segmentation has keys of ours as
well, dense pose those of a project of Detectron2.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode


class _Loader(yaml.SafeLoader):
    """Knows ``!tuple``: Detectron2 has tuples and lists, and a dump tells them apart."""


_Loader.add_constructor(
    "!tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


def read_schema(name: str) -> dict[str, Any]:
    """Return the defaults in ``NAME.yaml`` next to this file, nested as in a config."""
    text = Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def flatten_config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"SOLVER.BASE_LR": 0.02, …}``: every key of a config, by its full path."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten_config(value).items()}
        else:
            flat[key] = value
    return flat


def _merged(tree: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the keys of another one, which has none of its leaves."""
    both = {key: _merged(tree[key], more[key]) for key in tree.keys() & more.keys()}
    return {**tree, **more, **both}


SEGMENTOR = "SemanticSegmentor"
DETECTION_DEFAULTS = read_schema("detection_schema")
# Keys that Detectron2 itself lacks, and what a config must set to have them (None: to any value).
EXTENSIONS = {
    "segmentation_schema": ("MODEL.META_ARCHITECTURE", SEGMENTOR),
    "densepose_schema": ("MODEL.DENSEPOSE_ON", None),
    "logging_schema": ("LOGGERS", None),
    "selection_schema": ("TEST.KEEP_BEST", None),
}
_SCHEMAS = {name: read_schema(name) for name in EXTENSIONS}
#: Those of the program, not of the detector.
PROGRAM_SCHEMAS = ("logging_schema", "selection_schema")
#: Each such key, and what it needs.
EXTENSION_KEYS = {
    key: " ".join(filter(None, EXTENSIONS[name]))
    for name, schema in _SCHEMAS.items()
    for key in flatten_config(schema)
}
ALL_DEFAULTS = functools.reduce(_merged, _SCHEMAS.values(), DETECTION_DEFAULTS)


def without_schema(cfg: CfgNode, *names: str) -> CfgNode:
    """Return a copy of a detection config, not frozen, without the keys of some extensions."""
    cfg = cfg.clone()
    cfg.defrost()
    for key in (key for name in names for key in flatten_config(_SCHEMAS[name])):
        *sections, leaf = key.split(".")
        functools.reduce(lambda node, name: node[name], sections, cfg).pop(leaf, None)
    return cfg


def defaults_for(contents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the defaults of a detection config of these files and overrides, each flat, the last
    one winning: Detectron2's, and those of each extension that the config has.
    """
    settings = {key: value for content in contents for key, value in content.items()}
    defaults = DETECTION_DEFAULTS
    for name, (key, needed) in EXTENSIONS.items():
        if key in settings and needed in (None, settings[key]):
            defaults = _merged(defaults, _SCHEMAS[name])
    return defaults
