"""Completion in shells: what argcomplete asks this program for at each press of Tab."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..runtime.launch import launch_options
from .options import DESCRIPTIONS, SEVERAL_PROCESSES, add_options


def complete() -> None:
    """Print the words that may follow those of COMP_LINE, and end the process."""
    import argcomplete

    parser = argparse.ArgumentParser(prog="moco-transfer")
    verbs = parser.add_subparsers(metavar="VERB")
    for verb in (verb for verb in DESCRIPTIONS if verb != "shared"):
        launch = [launch_options()] if verb in SEVERAL_PROCESSES else []
        options = verbs.add_parser(verb, parents=launch)
        add_options(options, verb)
        for action in options._actions:
            if names := _NAMES.get((verb, action.dest), _NAMES.get(("", action.dest))):
                action.completer = _completer(verb, names)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _completer(verb: str, names: Callable[[str, Any], Iterable[str]]) -> Callable[..., list[str]]:
    def completer(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
        from argcomplete.completers import FilesCompleter

        found = [name for name in names(verb, parsed_args) if name.startswith(prefix)]
        return [*found, *FilesCompleter()(prefix)]

    return completer


def _configs(verb: str, _: object) -> list[str]:
    from ..config import available

    kinds = ("pretrain/",) if verb == "pretrain" else ("detection/", "segmentation/")
    found = (name for name in available() if name.startswith(kinds))
    return [name.partition("/")[2] for name in found if "/Base-" not in name]


def _keys(verb: str, args: argparse.Namespace) -> list[str]:
    """Return config keys where a KEY is due, and the legal values of the one before a VALUE."""
    from ..config.pretrain_schema import ONE_OF, PRETRAIN_DEFAULTS
    from ..config.schema_file import ALL_DEFAULTS, flatten_config

    if verb == "check-data" and not args.config_file:
        return _data_sets(verb, args)
    given = getattr(args, "overrides", None) or []
    if len(given) % 2:
        is_data = given[-1] in ("DATASETS.TRAIN", "DATASETS.TEST")
        return _data_sets() if is_data else list(ONE_OF.get(given[-1], ()))
    return list(flatten_config(PRETRAIN_DEFAULTS if verb == "pretrain" else ALL_DEFAULTS))


def _data_sets(*_: object) -> list[str]:
    from ..data.annotations.catalog import dataset_names

    return dataset_names()


def _tables(*_: object) -> list[str]:
    from ..reproduce import paper_tables

    return [table.name for table in paper_tables()]


def _weights(*_: object) -> list[str]:
    import yaml

    file = Path(__file__).parent.parent / "convert" / "zoo.yaml"  # the package imports torch
    return list(yaml.safe_load(file.read_text(encoding="utf-8")))


#: (verb, or "" for all, and destination of an option) -> the names that it may have besides files.
_NAMES: dict[tuple[str, str], Callable[[str, Any], Iterable[str]]] = {
    ("", "config_file"): _configs,
    ("benchmark", "tasks"): _configs,
    **{(verb, "overrides"): _keys for verb in ("pretrain", "train", "benchmark")},
    ("check-data", "names"): _keys,
    ("reproduce", "names"): _tables,
    ("convert", "src"): _weights,
}
