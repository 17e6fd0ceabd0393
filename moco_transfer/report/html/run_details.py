"""What the page says of each run beyond its numbers: command, weights, versions, config, machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from ..aggregate import Table
from ..caveats import run_caveats
from ..records import CONFIG_FILE, RunRecord, text_of

ENVIRONMENT_FILE = "env.txt"
_MISSING = object()


@dataclass(frozen=True)
class RunDetails:
    """One run.

    Attributes:
        anchor: Its place in the page.
        title: Row, seed and folder.
        facts: (name, value) pairs.
        differs: (config key, value, value of the table's config) where its config is not the one
            that the table shows.
        environment: Its env.txt, "" where there is none.
    """

    anchor: str
    title: str
    facts: tuple[tuple[str, str], ...]
    differs: tuple[tuple[str, str, str], ...]
    environment: str


def table_details(table: Table, *, prefix: str) -> tuple[str, list[RunDetails]]:
    """Return the config of a table's first run that has one, and the details of all its runs.

    Args:
        table: Its runs' folders are read again, for config.yaml and env.txt.
        prefix: Start of the anchors.

    Returns:
        The config as YAML ("" when no run has kept it), and one entry per run. Configs of a table
        agree but for weights, seed and folder, so that the whole is shown once and each run by what
        differs.
    """
    texts = [text_of(run.folder, CONFIG_FILE) for run in table.runs]
    shown = next(filter(None, texts), "")
    base = flatten(shown)
    details = []
    for number, (run, text) in enumerate(zip(table.runs, texts, strict=True), start=1):
        title = f"{run.init}, seed {run.seed}: {run.folder}"
        differs = _differences(base, flatten(text)) if text and text != shown else ()
        details.append(
            RunDetails(
                f"{prefix}run-{number}",
                title,
                tuple(_facts(run, bool(text))),
                differs,
                text_of(run.folder, ENVIRONMENT_FILE),
            )
        )
    return shown, details


def flatten(text: str) -> dict[str, str]:
    """Return a YAML config as dotted key to value, both as text; {} when it is no table of keys."""
    try:
        config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that no calendar has
        return {}
    found: dict[str, str] = {}

    def visit(node: object, path: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                visit(value, f"{path}.{key}" if path else str(key))
        elif path:
            found[path] = repr(node)

    try:
        visit(config, "")
    except RecursionError:  # an anchor inside itself
        return {}
    return found


def _differences(base: dict[str, str], own: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    keys = sorted(
        key for key in base.keys() | own.keys() if base.get(key, _MISSING) != own.get(key, _MISSING)
    )
    return tuple((key, own.get(key, "absent"), base.get(key, "absent")) for key in keys)


def _facts(run: RunRecord, has_config: bool) -> list[tuple[str, str]]:
    weights, stamp = run.weights, run.weights.get("stamp") or {}
    trained = [str(stamp[key]) for key in ("mechanism", "arch") if stamp.get(key)]
    trained += [f"epoch {stamp['epoch']}"] if stamp.get("epoch") is not None else []
    facts = [
        ("command", run.command or "not recorded by this run"),
        ("config", run.config + ("" if has_config else " (config.yaml is not in the folder)")),
        ("config hash", run.config_hash),
        ("weights", str(weights.get("path") or "none: random initialisation")),
        ("weights' sha256", str(weights.get("sha256") or "")),
        ("pre-trained by", ", ".join(trained)),
        ("trained on", " + ".join(run.train_set)),
        ("tested on", " + ".join(run.test_set)),
        (
            "engine, norm",
            (
                f"{run.engine}, {run.norm}, {run.world_size}"
                f" process{'' if run.world_size == 1 else 'es'}"
            ),
        ),
        (
            "duration",
            "" if run.wall_sec is None else f"{run.wall_sec:.0f} s, {run.iterations} iterations",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
        ("commit", run.git or ""),
        ("marks", "; ".join(run_caveats(run))),
    ]
    return [(name, value) for name, value in facts if value]


def anchors_of(runs: Sequence[RunRecord], details: Sequence[RunDetails]) -> dict[int, str]:
    """Return ``id(run)`` to the anchor of its details."""
    return {id(run): detail.anchor for run, detail in zip(runs, details, strict=True)}
