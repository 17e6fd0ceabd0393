"""Reading a config: each file of the ``_BASE_`` chain, then the KEY VALUE overrides, each key
checked where it stands.

fvcore's CfgNode does the merging and the type check; what this module adds is that every refusal
names the file, the key and the nearest legal key, and that the whole chain is checked, not only the
file that was named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from ..runtime.errors import InputError, MissingFileError, UnknownKeyError, did_you_mean
from . import paths
from .detection_schema import DETECTION_DEFAULTS
from .pretrain_schema import PRETRAIN_DEFAULTS, check_pretrain_values

_BASE = "_BASE_"


def load_pretrain_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> CfgNode:
    """Read a pre-training config.

    Args:
        path: A YAML file, or the name of a config that comes with the package.
        overrides: ``[KEY, VALUE, KEY, VALUE, …]`` as on the command line; they win over the file.

    Returns:
        The whole config, defaults included, frozen.

    Raises:
        MissingFileError: If the file, or a file it names as ``_BASE_``, does not exist.
        InputError: If a key is unknown, a value has the wrong type or is outside its legal values.
    """
    cfg = _load(path, overrides, PRETRAIN_DEFAULTS, "pretrain")
    check_pretrain_values(cfg, str(path))
    return cfg


def load_detection_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> CfgNode:
    """Read a detection config, which has exactly Detectron2's keys and defaults.

    Args, Returns, Raises: as :func:`load_pretrain_config`.
    """
    return _load(path, overrides, DETECTION_DEFAULTS, "detection")


def read_detection_config(text: str, where: str) -> CfgNode:
    """Read a whole detection config, such as a checkpoint holds, from its YAML.

    Args:
        text: What ``CfgNode.dump`` wrote; it names no ``_BASE_``.
        where: What the text comes from, for messages.

    Returns:
        The config, frozen.

    Raises:
        InputError: If it is not YAML, or a key or a value is not legal.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"{where}: its config is not YAML ({getattr(error, 'problem', None) or error})."
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{where}: its config is a {type(content).__name__}, expected KEY: VALUE lines."
        )
    cfg = CfgNode(DETECTION_DEFAULTS)
    known = dict(_leaves(DETECTION_DEFAULTS))
    for key, value in _leaves(content):
        _merge(cfg, known, where, key, value)
    cfg.freeze()
    return cfg


def is_set_by_user(path: str | os.PathLike[str], overrides: Sequence[str], key: str) -> bool:
    """Whether a key of a detection config was written by the user: on the command line, or in a
    file that does not come with the package.

    Args:
        path: As for :func:`load_detection_config`.
        overrides: As for :func:`load_detection_config`.
        key: Full path, e.g. ``MODEL.ROI_HEADS.NUM_CLASSES``.
    """
    shipped = {file.resolve() for file in paths.available().values()}
    in_file = any(
        key in dict(_leaves(content))
        for file, content in _chain(_find(path, "detection"))
        if file.resolve() not in shipped
    )
    return in_file or key in overrides[::2]


def reference_batch_and_lr(path: str | os.PathLike[str]) -> tuple[int, float]:
    """Return the SOLVER.IMS_PER_BATCH and SOLVER.BASE_LR that a detection config was written with.

    That is the pair of the nearest file in its ``_BASE_`` chain that comes with the package or sets
    both keys: a file of the user's that changes one of them alone was not written with a pair of
        its own.

    Args:
        path: As for :func:`load_detection_config`.

    Raises:
        As :func:`load_pretrain_config`.
    """
    cfg = CfgNode(DETECTION_DEFAULTS)
    known = dict(_leaves(DETECTION_DEFAULTS))
    shipped = {file.resolve() for file in paths.available().values()}
    pair = (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR)
    for file, content in _chain(_find(path, "detection")):
        leaves = dict(_leaves(content))
        for key, value in leaves.items():
            _merge(cfg, known, str(file), key, value)
        if file.resolve() in shipped or {"SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR"} <= set(leaves):
            pair = (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR)
    return pair


def _load(
    path: str | os.PathLike[str], overrides: Sequence[str], defaults: dict[str, Any], kind: str
) -> CfgNode:
    cfg = CfgNode(defaults)  # CfgNode copies nested dictionaries, so the defaults stay as they are
    known = dict(_leaves(defaults))
    for file, content in _chain(_find(path, kind)):
        for key, value in _leaves(content):
            _merge(cfg, known, str(file), key, value)
    if len(overrides) % 2:
        raise InputError(
            f"Overrides come in pairs KEY VALUE, got {len(overrides)} words; the last is"
            f" {overrides[-1]!r}."
        )
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _merge(cfg, known, "command line", key, _as_list(known.get(key), value))
    cfg.freeze()
    return cfg


def _find(path: str | os.PathLike[str], kind: str) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise InputError(f"Config {file} is a folder, expected a YAML file.")
    stem = file.name.removesuffix(".yaml")
    configs = paths.available()
    if file.parent == Path("."):
        found = configs.get(f"{kind}/{stem}") or configs.get(stem)
        if found is not None:
            return found
    names = [k.split("/")[1] for k in configs if k.startswith(kind + "/")]
    raise MissingFileError(
        f"Config {file} does not exist.{did_you_mean(stem, names)} Give a YAML file or one of:"
        f" {', '.join(names)}."
    )


def _chain(file: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Return (file, content) from the outermost base to the file itself."""
    if file.resolve() in seen:
        raise InputError(f"{file}: _BASE_ leads back to this file. Remove one of the _BASE_ lines.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(
            f"Config {file} does not exist (named as _BASE_ by"
            f" {seen[-1] if seen else 'the command line'})."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(
            f"{file}{where}: not YAML ({getattr(error, 'problem', None) or error})."
        ) from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(
            f"{file}: expected KEY: VALUE lines at the top, got a {type(content).__name__}."
        )
    base = content.pop(_BASE, None)
    if base is None:
        return [(file, content)]
    base_file = Path(os.path.expanduser(base))
    base_file = base_file if base_file.is_absolute() else file.parent / base_file
    return [*_chain(base_file, (*seen, file.resolve())), (file, content)]


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merge(cfg: CfgNode, known: dict[str, Any], where: str, key: str, value: Any) -> None:
    if key not in known:
        section = [k for k in known if k.startswith(key + ".")]
        if section:
            raise UnknownKeyError(
                f"{where}: {key!r} is a section, not a key; it holds {', '.join(section[:6])}."
            )
        raise UnknownKeyError(f"{where}: unknown key {key!r}.{did_you_mean(key, known)}")
    try:
        cfg.merge_from_list([key, value])
    except ValueError as error:
        default = known[key]
        hint = f" Write {value}.0." if isinstance(default, float) and _is_int(value) else ""
        raise InputError(
            f"{where}: {key} must be a {_type_name(default)} such as {default!r}, got"
            f" {value!r}.{hint}"
        ) from error


def _as_list(default: Any, value: str) -> Any:
    """Let ``DATASETS.TRAIN a,b`` and ``SOLVER.STEPS 200`` stand for lists, which are awkward to
    quote in a shell.
    """
    if not isinstance(default, (tuple, list)) or value.startswith(("(", "[")):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(yaml.safe_load(part) for part in parts)


def _is_int(value: Any) -> bool:
    return not isinstance(value, bool) and str(value).lstrip("+-").isdigit()


def _type_name(default: Any) -> str:
    names = {
        str: "string",
        int: "whole number",
        float: "decimal number",
        bool: "truth value (True or False)",
        tuple: "list",
        list: "list",
    }
    return names.get(type(default), type(default).__name__)
