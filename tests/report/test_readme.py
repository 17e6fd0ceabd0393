"""Sections of a README that name their records, and this repository's own.

Seen red under: the first section filled for the second; text between sections lost; paths taken
from the working folder instead of the README's; a section without an end taken to the end of the
next; a section's --baseline ignored.
"""

from __future__ import annotations

import argparse
import re
import shutil

import pytest

from moco_transfer.cli import report
from moco_transfer.cli.options import add_options
from moco_transfer.runtime.errors import InputError


def _run(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser, "report")
    return report.run(parser.parse_args([str(argument) for argument in arguments]))


def test_report__fills_every_section_that_names_its_records(
    make_run, tmp_path, monkeypatch, capsys
):
    make_run("docs/voc/m0", "moco", 0, bbox={"AP": 41.0, "AP50": 1.0, "AP75": 1.0})
    make_run("docs/voc/m0b", "moco", 0)
    make_run("docs/coco/m0", "moco", 0, bbox={"AP": 42.0, "AP50": 1.0, "AP75": 1.0})
    readme = tmp_path / "README.md"
    readme.write_text(
        "a\n<!-- results:begin docs/coco -->\n<!-- results:end -->\nb\n<!-- results:begin docs/voc"
        " -->\n<!-- results:end -->\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert _run("--readme", readme) == 0
    assert capsys.readouterr().out == ""
    coco, voc = readme.read_text().split("\nb\n")
    assert "| moco | 42.0 |" in coco and "| moco | 42.0 |" not in voc
    assert "docs/voc/m0 (bbox AP 41.0); docs/voc/m0b" in voc
    assert str(tmp_path) not in readme.read_text()
    before = readme.read_text()
    assert _run("--readme", readme) == 0
    assert readme.read_text() == before


def test_report__fills_a_section_with_the_summary(make_run, tmp_path):
    """By hand: random is 1 below moco in voc, 3 in coco, on average 2."""
    for task, gap in {"voc": 1, "coco": 3}.items():
        for seed in (0, 1):
            for init, ap in {"random": 40 + seed - gap, "moco": 40 + seed}.items():
                bbox = {"AP": ap, "AP50": 1.0, "AP75": 1.0}
                make_run(f"docs/{task}/{init}{seed}", init, seed, task=task, bbox=bbox)
    page = tmp_path / "page.md"
    begin = "<!-- results:begin --summary --baseline=moco docs/voc docs/coco -->"
    page.write_text(f"{begin}\n<!-- results:end -->\n")
    assert _run("--readme", page) == 0
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert "| Δ random |" in "".join(rows)
    assert any(line.startswith("| random |") and "-2.0 |" in line for line in rows)


@pytest.mark.parametrize("word", ["--sumary", "--baseline=none"])
def test_report__refuses_an_unknown_option_of_a_section(make_run, tmp_path, word):
    make_run("docs/voc/m0", "moco", 0)
    page = tmp_path / "page.md"
    page.write_text(f"<!-- results:begin {word} docs/voc --><!-- results:end -->")
    with pytest.raises(InputError, match=rf"page\.md.*{word.partition('=')[0]}"):
        _run("--readme", page)


def test_report__refuses_what_names_no_runs(tmp_path):
    for words in ((), (tmp_path, "--readme", tmp_path / "x.md")):
        with pytest.raises(InputError, match="either run folders, or --readme FILE"):
            _run(*words)


def test_readme__its_tables_are_those_of_the_records(repository, tmp_path):
    text = (repository / "README.md").read_text(encoding="utf-8")
    shutil.copy(repository / "README.md", tmp_path)
    for path in " ".join(re.findall(r"<!-- results:begin (.*?) -->", text)).split():
        shutil.copytree(repository / path, tmp_path / path)
    assert _run("--readme", tmp_path / "README.md") == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text
