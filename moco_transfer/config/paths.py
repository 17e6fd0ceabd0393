"""Where the configs that come with the package are: in the source tree, or inside the installed
wheel.
"""

from __future__ import annotations

from pathlib import Path

# config may import nothing of ours but the sentences of runtime's errors (see
# tests/test_layering.py).
from ..runtime.errors import MissingFileError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent


def _root() -> Path:
    in_source_tree = _PACKAGE.parent / "configs"
    return in_source_tree if (in_source_tree / "detection").is_dir() else _PACKAGE / "configs"


def available() -> dict[str, Path]:
    """Return the configs that come with the package, by name (the file's stem; ``pretrain/demo``
    where two share one).
    """
    found: dict[str, Path] = {}
    for kind in ("pretrain", "detection"):
        for file in sorted((_root() / kind).glob("*.yaml")):
            found[f"{kind}/{file.stem}"] = file
            found.setdefault(file.stem, file)
    return found


def path(name: str) -> str:
    """Return the path of a config that comes with the package.

    Args:
        name: The file's stem, e.g. ``pascal_voc_R_50_C4_24k``; with its folder (``pretrain/demo``)
            where both kinds have it.

    Returns:
        An absolute path, also for an installed wheel; Detectron2's ``cfg.merge_from_file`` takes it
        as it is.

    Raises:
        MissingFileError: If there is no config of that name.
    """
    configs = available()
    name = name.removesuffix(".yaml")
    if name not in configs:
        raise MissingFileError(
            f"No config is called {name!r}.{did_you_mean(name, configs)} There are:"
            f" {', '.join(k for k in sorted(configs) if '/' not in k)}."
        )
    return str(configs[name])
