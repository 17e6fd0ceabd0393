"""README and docs name only paths, options, config keys and records that exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shutil
from itertools import product

import pytest

from moco_transfer.cli.main import VERBS, main
from moco_transfer.config.pretrain_schema import PRETRAIN_DEFAULTS
from moco_transfer.config.schema_file import ALL_DEFAULTS

from .commands import PAGES, REPOSITORY

# Paths that a command writes, of a reader's machine, or of other repositories.
NOT_HERE = re.compile(
    r"(out|runs|demo_output|build|dist|images|labelled|annotations|detection|colab|DST|ROOT|OUTPUT"
    r"|train|val|test|VOC|JPEG|cifar|eval_|\.venv|/|\w+:)"
)
# Options of other programs.
FOREIGN_OPTIONS = {"--shm-size", "--nproc_per_node", "--nnodes", "--max_restarts"}


def _code(page) -> list[str]:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<!-- results:begin.*?results:end -->", "", text, flags=re.DOTALL)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages__name_paths_that_exist(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    for path in _code(page):
        if not re.fullmatch(r"[\w./*{},-]*/[\w./*{},-]*|\w+\.(md|cff|toml|yaml|txt)", path):
            continue
        if NOT_HERE.match(path) or re.fullmatch(r"\w+\.(txt|yaml)", path):
            continue
        roots = (REPOSITORY, REPOSITORY / "moco_transfer", REPOSITORY / "docs")
        if not any(
            list(root.glob(one)) for root, one in product(roots, _alternatives(path.rstrip("/")))
        ):
            missing.append(path)
    assert not missing


def _alternatives(path: str) -> list[str]:
    """Return the paths of a name with ``{a,b}``."""
    match = re.search(r"\{([^}]*)\}", path)
    if not match:
        return [path]
    found = [f"{path[: match.start()]}{one}{path[match.end() :]}" for one in match[1].split(",")]
    return [inner for one in found for inner in _alternatives(one)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages__name_config_keys_that_exist(page):
    keys = set(_keys(PRETRAIN_DEFAULTS)) | set(_keys(ALL_DEFAULTS))
    named = {
        key
        for code in _code(page)
        for key in re.findall(r"(?<![\w.])[A-Z][A-Z0-9_]+(?:\.[A-Z][A-Z0-9_]+)+(?![\w.])", code)
    }
    assert not named - keys


def _keys(node: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{key}.")
    return found


@pytest.fixture(scope="module")
def all_help() -> str:
    printed = io.StringIO()
    for verb in VERBS:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([verb, "--help"])
    sources = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "tools").glob("*.py")]
    return printed.getvalue() + "".join(sources)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages__name_options_that_exist(page, all_help):
    options = {o for code in _code(page) for o in re.findall(r"(?<![\w-])--[a-z][\w-]+", code)}
    unknown = [
        option
        for option in options - FOREIGN_OPTIONS
        if not re.search(rf"{option}(?![\w-])", all_help)
    ]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages__their_tables_are_those_of_the_records(page, tmp_path):
    """README's own is tested in tests/report."""
    if page.name == "README.md" or "<!-- results:begin" not in page.read_text(encoding="utf-8"):
        return
    shutil.copy(page, tmp_path)
    shutil.copytree(REPOSITORY / "docs" / "results", tmp_path / "results")
    assert main(["report", "--into", str(tmp_path / page.name)]) == 0
    assert (tmp_path / page.name).read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_readme__is_short_and_names_the_make_targets():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    assert "make demo" in text and "make test" in text


def test_api_page__names_what_can_be_imported():
    """What the page documents is importable, also where mkdocstrings is not installed."""
    text = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    for name in re.findall(r"^::: (\S+)", text, re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_site__every_page_is_in_the_navigation():
    mkdocs = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": (\S+\.md)$", mkdocs, re.MULTILINE))
    assert named == {page.name for page in (REPOSITORY / "docs").glob("*.md")}
