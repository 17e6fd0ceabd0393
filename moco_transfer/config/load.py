"""Read a config: each file of the ``_BASE_`` chain, then the KEY VALUE overrides.

fvcore's CfgNode merges and checks types. Added here: every refusal names the file, the key and the
nearest legal key, and the whole chain is checked, not only the file that was named.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from ..runtime.errors import InputError, MissingFileError, UnknownKeyError, did_you_mean
from ..runtime.text import parse_yaml, read_text
from . import paths
from .pretrain_schema import PRETRAIN_DEFAULTS, check_pretrain_values
from .schema_file import ALL_DEFAULTS, EXTENSION_KEYS, defaults_for, flatten_config

PathLike = str | os.PathLike[str]

_BASE = "_BASE_"
_ABOVE_0 = 1e-12
_AT_LEAST: dict[str, float] = {
    **{"SOLVER.MAX_ITER": 1, "SOLVER.CHECKPOINT_PERIOD": 1, "MODEL.PIXEL_STD": _ABOVE_0},
    **dict.fromkeys(("SOLVER.BASE_LR", "SOLVER.WARMUP_ITERS", "DATALOADER.NUM_WORKERS"), 0),
}
_TYPES = {str: "string", int: "whole number", float: "decimal number", tuple: "list", list: "list"}
_TYPES[bool] = "truth value (True or False)"


def load_pretrain_config(path: PathLike, overrides: Sequence[str] = ()) -> CfgNode:
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
    cfg = _load(path, overrides, "pretrain")
    check_pretrain_values(cfg, str(path))
    return cfg


def load_detection_config(path: PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a detection config, which has exactly Detectron2's keys and defaults; configs of
    semantic segmentation have ours as well, and those of dense pose its project's.

    Args, Returns, Raises: as :func:`load_pretrain_config`.
    """
    cfg = _load(path, overrides, "detection")
    values = flatten_config(cfg)
    for key, low in _AT_LEAST.items():
        if min(values[key] if isinstance(values[key], (tuple, list)) else [values[key]]) < low:
            least = "above 0" if low == _ABOVE_0 else f"at least {low}"
            raise InputError(f"{path}: {key} is {values[key]}, expected {least}.")
    return cfg


def read_detection_config(text: str, where: str) -> CfgNode:
    """Return the frozen config in the YAML that a checkpoint holds; it names no ``_BASE_``.

    Raises:
        InputError: If it is not YAML, or a key or a value is not legal; it names ``where``.
    """
    content = _parse(text, where)
    cfg, known = _new(defaults_for([content]))
    _merge_all(cfg, known, where, content)
    cfg.freeze()
    return cfg


def is_set_by_user(path: PathLike, overrides: Sequence[str], key: str) -> bool:
    """Whether the user wrote a key of a detection config: in an override or a file of their own.

    Args:
        path: As for :func:`load_detection_config`.
        overrides: As for :func:`load_detection_config`.
        key: Full path, e.g. ``MODEL.ROI_HEADS.NUM_CLASSES``.
    """
    chain = _chain(_find(path, "detection"))
    in_file = any(key in content for file, content in chain if not _is_shipped(file))
    return in_file or key in overrides[::2]


def reference_batch_and_lr(path: PathLike) -> tuple[int, float]:
    """Return the SOLVER.IMS_PER_BATCH and SOLVER.BASE_LR that a detection config was written with.

    That is the pair of the nearest file in its ``_BASE_`` chain that comes with the package or sets
    both keys: a user's file that changes one of them alone was not written with a pair of its own.

    Raises:
        As :func:`load_pretrain_config`.
    """
    chain = _chain(_find(path, "detection"))
    # With all keys that there are: the architecture may be named in an override.
    cfg, known = _new(ALL_DEFAULTS)
    pair = (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR)
    for file, content in chain:
        _merge_all(cfg, known, str(file), content)
        if _is_shipped(file) or {"SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR"} <= set(content):
            pair = (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR)
    return pair


def _new(defaults: dict[str, Any]) -> tuple[CfgNode, dict[str, Any]]:
    """Return a config of default values, and the same flat."""
    return CfgNode(defaults), flatten_config(defaults)  # a copy


def _load(path: PathLike, overrides: Sequence[str], kind: str) -> CfgNode:
    chain = _chain(_find(path, kind))
    written = dict(zip(overrides[::2], overrides[1::2], strict=False))
    is_detection = kind == "detection"
    contents = [*(content for _, content in chain), written]
    cfg, known = _new(defaults_for(contents) if is_detection else PRETRAIN_DEFAULTS)
    for file, content in chain:
        _merge_all(cfg, known, str(file), content)
    if len(overrides) % 2:
        raise InputError(
            f"Overrides come in pairs KEY VALUE, got {len(overrides)} words; the last is"
            f" {overrides[-1]!r}."
        )
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _merge_all(cfg, known, "command line", {key: _as_list(known.get(key), value)})
    cfg.freeze()
    return cfg


def _is_shipped(file: Path) -> bool:
    same_name = [each for each in paths.available().values() if each.name == file.name]
    return any(file.samefile(each) for each in same_name)


def _find(path: PathLike, kind: str) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise InputError(f"Config {file} is a folder, expected a YAML file.")
    stem = file.name.removesuffix(".yaml")
    configs = paths.available()
    folders = ("detection", "segmentation") if kind == "detection" else (kind,)
    named = [f"{folder}/{stem}" for folder in folders]
    found = next((configs[name] for name in (*named, stem) if name in configs), None)
    if found is not None and file.parent == Path("."):
        return found
    names = [name.split("/")[1] for name in configs if name.split("/")[0] in folders]
    raise MissingFileError(
        f"Config {file} does not exist.{did_you_mean(stem, names)} Give a YAML file or one of:"
        f" {', '.join(names)}."
    )


def _chain(file: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Return (file, full key -> value) from the outermost base to the file itself."""
    if file.resolve() in seen:
        raise InputError(f"{file}: _BASE_ leads back to this file. Remove one of the _BASE_ lines.")
    try:
        text = read_text(file)
    except InputError as error:
        where = f" (named as _BASE_ by {seen[-1]})" if seen else ""
        raise type(error)(f"Config {error}{where}") from error
    content = _parse(text, str(file))
    base = content.pop(_BASE, None)
    if base is None:
        return [(file, content)]
    if not isinstance(base, str):
        raise InputError(f"{file}: _BASE_ is {base!r}, expected the path of one YAML file.")
    base_file = file.parent / os.path.expanduser(base)
    return [*_chain(base_file, (*seen, file.resolve())), (file, content)]


def _parse(text: str, where: str) -> dict[str, Any]:
    """Return full key -> value of a YAML text."""
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{where}{line}: not YAML ({problem}).") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        got = type(content).__name__
        raise InputError(f"{where}: expected KEY: VALUE lines at the top, got a {got}.")
    return flatten_config({str(key): value for key, value in content.items()})


def _merge_all(
    cfg: CfgNode, known: Mapping[str, Any], where: str, content: Mapping[str, Any]
) -> None:
    for key, value in content.items():
        if key not in known:
            inside = [name for name in known if name.startswith(f"{key}.")]
            what = f"{key!r} is a section, not a key; it holds {', '.join(inside[:6])}."
            hint = f"unknown key {key!r}.{did_you_mean(key, known)}"
            if key in EXTENSION_KEYS:
                hint = f"{key} needs {EXTENSION_KEYS[key]}."
            raise UnknownKeyError(f"{where}: {what if inside else hint}")
        default = known[key]
        is_whole = not isinstance(value, bool) and str(value).lstrip("+-").isdigit()
        try:
            number = float(value) if is_whole and isinstance(default, float) else value
            cfg.merge_from_list([key, number])
            _check_numbers(default, functools.reduce(getattr, key.split("."), cfg))
        except (ValueError, OverflowError) as error:
            kind = _TYPES.get(type(default), type(default).__name__)
            raise InputError(
                f"{where}: {key} must be a {kind} such as {default!r}, got {value!r}."
            ) from error


def _check_numbers(default: Any, value: Any) -> None:
    """Raise ValueError for NaN, for no value, and where a list is not one of numbers as the default
    is: the config's own check sees only that it is a list.
    """
    legal = {(depth, kind in (int, float) or kind) for depth, kind, _ in _leaves(default)}
    for depth, kind, leaf in _leaves(value):
        is_other = isinstance(default, (tuple, list)) and legal
        is_empty = value is None and default is not None  # which yacs takes for any key
        if (
            is_empty
            or leaf != leaf
            or is_other
            and (depth, kind in (int, float) or kind) not in legal
        ):
            raise ValueError(leaf)


def _leaves(value: Any, depth: int = 0) -> Iterator[tuple[int, type, Any]]:
    """Yield how deep each value lies in a list of lists, its type and itself."""
    if not isinstance(value, (tuple, list)):
        yield depth, type(value), value
        return
    for part in value:
        yield from _leaves(part, depth + 1)


def _as_list(default: Any, value: str) -> Any:
    """Read ``DATASETS.TRAIN a,b`` and ``SOLVER.STEPS 200`` as lists, for shells."""
    if not isinstance(default, (tuple, list)) or value.startswith(("(", "[")):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(yaml.safe_load(part) for part in parts)
