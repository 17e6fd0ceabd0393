"""Who may import whom: the table of docs/architecture.md, checked on every import of the package.

Imports inside functions and under TYPE_CHECKING count. Went red under: pretrain imported in
finetune/plan.py; torch imported in report/aggregate.py; a CfgNode parameter in pretrain/run.py; two
files that import each other under TYPE_CHECKING; ``x.is_cuda`` in finetune/sync_norm.py.
"""

from __future__ import annotations

import ast

import pytest

PACKAGE = "moco_transfer"
ALLOWED = {
    "runtime": set(),
    "config": {"runtime"},  # its errors and files alone, see below
    "models": {"runtime"},
    "data": {"runtime", "models"},
    "convert": {"runtime", "models"},
    "evaluate": {"data", "runtime"},
    "pretrain": {"runtime", "config", "models", "data", "convert"},
    "finetune": {"runtime", "config", "models", "data", "convert", "evaluate"},
    "suggest": {"data", "runtime"},
    "benchmark": {"finetune", "report", "data", "runtime", "config"},
    "report": {"evaluate", "runtime"},  # metric names, errors and files alone, see below
    "reproduce": {"config", "report", "runtime"},
    "cli": {
        *("runtime", "config", "models", "data", "convert", "evaluate"),
        *("pretrain", "finetune", "suggest", "benchmark", "report", "reproduce"),
    },
}
# File -> how many of its lines name CUDA, and why. Elsewhere runtime is asked, so that other
# devices, and the one of tests/devices, go the way that a GPU goes.
NAMES_CUDA = {
    "benchmark/launch.py": (3, "CUDA_VISIBLE_DEVICES: runs side by side get a GPU each"),
    "cli/doctor.py": (9, "reports on it: versions, names of the GPUs"),
    "finetune/plan.py": (5, "a value of Detectron2's key MODEL.DEVICE"),
    "finetune/predict/detector.py": (1, "a value of the argument `device`, in its documentation"),
    "finetune/sync_norm.py": (2, "why torch's SyncBatchNorm is replaced on a CPU"),
    "finetune/detectron2_engine/build.py": (
        3,
        "the generator of a GPU, which Detectron2 draws from",
    ),
    "suggest/finetuning.py": (1, "a value of MODEL.DEVICE, written into a config"),
    "suggest/pretraining.py": (1, "a value of TRAIN.DEVICE, written into a config"),
}
LIGHT = ("runtime.errors", "runtime.files", "runtime.text", "evaluate.metric_names")


@pytest.fixture(scope="module")
def trees(repository) -> dict[str, ast.Module]:
    """Module name without ``moco_transfer.`` -> syntax tree."""
    found = {}
    for file in sorted((repository / PACKAGE).rglob("*.py")):
        parts = file.relative_to(repository / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
        found[name].is_package = file.name == "__init__.py"
    return found


@pytest.fixture(scope="module")
def imports(trees) -> dict[str, set[str]]:
    """Module -> absolute names that it imports; a name from a module counts as ``module.name``."""
    return {name: _imports_of(name, tree) for name, tree in trees.items()}


def _imports_of(name: str, tree: ast.Module) -> set[str]:
    here = [PACKAGE, *name.split(".")] if name else [PACKAGE]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = node.level - tree.is_package
            base = here[: len(here) - up] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def _ours(name: str, modules) -> str | None:
    """Return the module of this package that an imported name belongs to."""
    name = name.removeprefix(PACKAGE + ".")
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def test_packages_import_only_what_the_table_allows(imports):
    wrong = []
    for module, names in imports.items():
        mine = module.split(".")[0]
        for name in names:
            parts = name.split(".")
            if mine not in ALLOWED or parts[0] != PACKAGE or parts[1] not in ALLOWED:
                continue
            if parts[1] not in ALLOWED[mine] | {mine}:
                wrong.append(f"{module} imports {name}")
    assert not wrong, wrong


def test_every_package_has_a_rule(repository):
    folders = {p.parent.name for p in (repository / PACKAGE).glob("*/__init__.py")}
    assert folders == set(ALLOWED)


def test_no_circle_of_files(trees, imports):
    graph = {}
    for module, names in imports.items():
        inside = {_ours(n, trees) for n in names if n.startswith(PACKAGE + ".")}
        graph[module] = {m for m in inside if m and m != module}
    order, state, circles = [], {}, []

    def visit(module: str) -> None:
        state[module] = "open"
        order.append(module)
        for other in sorted(graph[module]):
            if state.get(other) == "open":
                circles.append(" -> ".join([*order[order.index(other) :], other]))
            elif other not in state:
                visit(other)
        order.pop()
        state[module] = "done"

    for module in graph:
        if module not in state:
            visit(module)
    assert not circles, circles


@pytest.mark.parametrize("package", ["config", "report", "reproduce"])
def test_config_and_report_import_nothing_heavy(imports, package):
    for module, names in imports.items():
        if module.split(".")[0] == package:
            ours = [n.removeprefix(PACKAGE + ".") for n in names if n.startswith(PACKAGE + ".")]
            theirs = [n for n in ours if n.split(".")[0] in ("runtime", "evaluate")]
            assert all(n.startswith(LIGHT) for n in theirs), f"{module}: {theirs}"
            assert not {n.split(".")[0] for n in names} & {"torch", "torchvision"}, module


def test_engines_are_fenced(imports):
    for module, names in imports.items():
        if not module.startswith("finetune.torchvision_engine"):
            assert not [n for n in names if n.startswith("torchvision.ops")], module
            assert not [n for n in names if n.startswith("torchvision.models.detection")], module
        else:
            assert not [n for n in names if "detectron2_engine" in n], module
        if not module.startswith("finetune.detectron2_engine"):
            assert not [n for n in names if n.split(".")[0] == "detectron2"], module
        else:
            assert not [n for n in names if "torchvision_engine" in n], module


def _takes_a_config(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            texts = [ast.unparse(a.annotation) for a in arguments if a.annotation]
            if any("CfgNode" in text for text in texts):
                found.append(node.name)
    return found


def test_only_plans_and_builds_take_a_config(trees):
    wrong = {}
    for module, tree in trees.items():
        if module.split(".")[0] in ("config", "cli") or module.split(".")[-1] == "plan":
            continue
        if module.endswith("_engine.build"):  # the one function that makes an engine's parts
            continue
        if functions := _takes_a_config(tree):
            wrong[module] = functions
    assert not wrong, wrong


def test_files_and_functions_are_of_a_readable_size(repository, trees):
    wrong = []
    for file in sorted((repository / PACKAGE).rglob("*.py")):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > 400:
            wrong.append(f"{file.relative_to(repository)}: {lines} lines")
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if length > 60:
                    wrong.append(f"{module}.{node.name}: {length} lines of code")
    assert not wrong, wrong


def test_cuda_is_named_in_runtime_or_for_a_reason(repository):
    found = {}
    for file in sorted((repository / PACKAGE).rglob("*.py")):
        name = file.relative_to(repository / PACKAGE).as_posix()
        lines = file.read_text(encoding="utf-8").splitlines()
        count = sum("cuda" in line.lower() for line in lines)
        if count and not name.startswith("runtime/"):
            found[name] = count
    assert found == {name: count for name, (count, _) in NAMES_CUDA.items()}


def test_folders_hold_about_a_dozen_files(repository):
    sizes = {
        folder.relative_to(repository): len(list(folder.glob("*.py"))) - 1
        for folder in (repository / PACKAGE).rglob("*")
        if (folder / "__init__.py").is_file() and folder.name != "cli"  # one file a verb
    }
    assert {str(f): n for f, n in sizes.items() if n > 16} == {}


def test_tools_that_are_verbs_are_thin(repository):
    for file in (repository / "tools").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "moco_transfer.cli" in text and not file.name.startswith("bench_"):
            assert len(text.splitlines()) <= 20, file
