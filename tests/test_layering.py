"""Who may import whom inside the package: design section 3, enforced by walking every import.

Went red under: importing moco_transfer.pretrain in finetune/build.py; importing torch at the top of
    report/aggregate.py;
importing torchvision.ops in convert.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ALLOWED = {
    "runtime": set(),
    "config": {
        "runtime"
    },  # for the errors alone; see test_layering__config_takes_only_errors_from_runtime
    "data": {"runtime"},
    "convert": {"runtime"},
    "evaluate": {"data", "runtime"},
    "pretrain": {"runtime", "config", "data"},
    "finetune": {"runtime", "config", "data", "convert", "evaluate"},
    "report": {"evaluate", "runtime"},  # metric names and errors alone
    "benchmark": {"runtime", "config", "data", "finetune", "report"},
    "cli": {
        "benchmark",
        "runtime",
        "config",
        "data",
        "convert",
        "evaluate",
        "pretrain",
        "finetune",
        "report",
    },
}


def imports_of(file: Path, package_root: Path) -> list[str]:
    """Return the absolute names of all modules that a file imports, at any depth of nesting."""
    here = ["moco_transfer", *file.relative_to(package_root).with_suffix("").parts]
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def python_files(repository: Path) -> list[Path]:
    return sorted((repository / "moco_transfer").rglob("*.py"))


@pytest.fixture(scope="module")
def all_imports(repository) -> dict[Path, list[str]]:
    root = repository / "moco_transfer"
    return {file.relative_to(root): imports_of(file, root) for file in python_files(repository)}


def test_layering__packages_import_only_what_the_design_allows(all_imports):
    wrong = []
    for file, imports in all_imports.items():
        if len(file.parts) < 2:
            continue
        mine = file.parts[0]
        for name in imports:
            parts = name.split(".")
            if (
                parts[0] == "moco_transfer"
                and len(parts) > 1
                and parts[1] in ALLOWED
                and parts[1] not in ALLOWED[mine] | {mine}
            ):
                wrong.append(f"{file} imports {name}")
    assert not wrong, wrong


def test_layering__every_package_has_a_rule(repository):
    folders = {p.parent.name for p in (repository / "moco_transfer").glob("*/__init__.py")}
    assert folders == set(ALLOWED)


@pytest.mark.parametrize("package", ["config", "report"])
def test_layering__config_and_report_take_only_light_modules_from_runtime(all_imports, package):
    light = (
        "moco_transfer.runtime.errors",
        "moco_transfer.runtime.files",
        "moco_transfer.evaluate.metric_names",
    )
    for file, imports in all_imports.items():
        if file.parts[0] == package:
            theirs = [
                n
                for n in imports
                if n.startswith(("moco_transfer.runtime", "moco_transfer.evaluate"))
            ]
            assert all(n.startswith(light) for n in theirs), f"{file}: {theirs}"
            assert not [n for n in imports if n.split(".")[0] in ("torch", "torchvision")], file


def test_layering__detection_operators_stay_in_their_engine(all_imports):
    for file, imports in all_imports.items():
        if file.parts[:2] != ("finetune", "torchvision_engine"):
            assert not [
                n
                for n in imports
                if n.startswith(("torchvision.ops", "torchvision.models.detection"))
            ], file
        if file.parts[:2] != ("finetune", "detectron2_engine"):
            assert not [n for n in imports if n.split(".")[0] == "detectron2"], file


def test_layering__engines_do_not_see_each_other(all_imports):
    for file, imports in all_imports.items():
        if "torchvision_engine" in file.parts:
            assert not [n for n in imports if "detectron2_engine" in n], file
        if "detectron2_engine" in file.parts:
            assert not [n for n in imports if "torchvision_engine" in n], file


def test_layering__only_build_files_read_a_config(all_imports):
    # A CfgNode enters a step in build.py; results.py hashes it whole and scaling.py returns it,
    # without unpacking it into parts.
    builds = {"build.py", "build_run.py", "plan.py", "predict.py"}
    allowed = builds
    for file, imports in all_imports.items():
        if file.parts[0] not in ("config", "cli") and file.name not in allowed:
            assert not [n for n in imports if n.startswith("fvcore.common.config")], file


def test_layering__tools_are_thin(repository):
    for file in (repository / "tools").glob("*.py"):
        if not file.name.startswith("bench_"):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 80, file
