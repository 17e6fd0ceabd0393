"""Where the configs of the package are: in the source tree, or in the installed wheel."""

from __future__ import annotations

from pathlib import Path

from ..runtime.errors import MissingFileError, did_you_mean

KINDS = ("pretrain", "detection", "segmentation")
_PACKAGE = Path(__file__).resolve().parent.parent


def available() -> dict[str, Path]:
    """Return the configs that come with the package, by name.

    A name is the file's stem, and ``pretrain/demo`` or ``detection/demo`` where two share one.
    """
    root = _PACKAGE.parent / "configs"
    root = root if (root / "detection").is_dir() else _PACKAGE / "configs"
    found: dict[str, Path] = {}
    for file in (f for kind in KINDS for f in sorted((root / kind).glob("*.yaml"))):
        found[f"{file.parent.name}/{file.stem}"] = file
        found.setdefault(file.stem, file)
    return found


def name_of(config_file: str) -> str:
    """Return the name of a config that is given by name or as a file; it may have dots (LVIS's)."""
    return Path(config_file).name.removesuffix(".yaml")


def path(name: str) -> str:
    """Return the absolute path of a config that comes with the package.

    Detectron2's ``cfg.merge_from_file`` takes it as it is, also from an installed wheel.

    Args:
        name: As :func:`available` names it, e.g. ``pascal_voc_R_50_C4_24k``.

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
