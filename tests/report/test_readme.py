"""Sections of a README that name their records, and this repository's own.

Seen red under: the first section filled for the second; text between sections lost; paths taken
    from the working folder instead
of the README's; a section without an end taken to the end of the next.
"""

from __future__ import annotations

import argparse
import shutil

import pytest

from moco_transfer.cli import report
from moco_transfer.report import insert_between_markers, marked_paths
from moco_transfer.runtime.errors import InputError

TWO = (
    "# T\n<!-- results:begin docs/a docs/b -->\nold\n<!-- results:end -->\nbetween\n<!--"
    " results:begin -->\n<!-- results:end -->\nend\n"
)


def _run(*arguments):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args([str(argument) for argument in arguments]))


def test_insert_between_markers__fills_the_section_that_is_meant():
    assert marked_paths(TWO) == [("docs/a", "docs/b"), ()]
    filled = insert_between_markers(insert_between_markers(TWO, "one", ("docs/a", "docs/b")), "two")
    assert (
        filled
        == "# T\n<!-- results:begin docs/a docs/b -->\n\none\n\n<!-- results:end -->\nbetween\n"
        "<!-- results:begin -->\n\ntwo\n\n<!-- results:end -->\nend\n"
    )


def test_insert_between_markers__refuses_a_section_without_an_end():
    text = "<!-- results:begin a -->\n<!-- results:begin b -->\n<!-- results:end -->\n"
    with pytest.raises(
        ValueError,
        match=(
            "expected the line <!-- results:end --> 2 times, once for each section, found it 1"
            " times"
        ),
    ):
        insert_between_markers(text, "x", ("a",))
    with pytest.raises(
        ValueError,
        match="results:begin a --> before its <!-- results:end -->, found them the other way round",
    ):
        insert_between_markers(f"{text}<!-- results:end -->", "x", ("a",))


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


def test_report__runs_fill_the_section_that_names_them(three_rows, make_run, monkeypatch):
    readme = three_rows / "README.md"
    readme.write_text(
        f"<!-- results:begin {three_rows.name} -->\n<!-- results:end -->\n<!-- results:begin"
        " -->\n<!-- results:end -->\n"
    )
    monkeypatch.chdir(three_rows.parent)
    (three_rows.parent / "README.md").write_text(readme.read_text())
    assert _run(three_rows, "--readme", "README.md") == 0
    named, plain = (three_rows.parent / "README.md").read_text().split("<!-- results:begin -->")
    assert "| moco | 56.2" in named and "| moco |" not in plain
    (three_rows.parent / "README.md").unlink()


def test_report__refuses_what_names_no_runs(tmp_path):
    with pytest.raises(
        InputError, match="No runs are named: give run folders, or --readme FILE alone"
    ):
        _run()
    with pytest.raises(InputError, match="No runs are named"):
        _run("--readme", tmp_path / "x.md", "--output", tmp_path / "y")
    (tmp_path / "x.md").write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    with pytest.raises(InputError, match="x.md has no section that names its records"):
        _run("--readme", tmp_path / "x.md")


def test_readme__its_tables_are_those_of_the_records(repository, tmp_path):
    sections = [
        paths
        for paths in marked_paths((repository / "README.md").read_text(encoding="utf-8"))
        if paths
    ]
    if not sections:
        pytest.skip("README.md has no section that names records")
    shutil.copy(repository / "README.md", tmp_path)
    for path in {path for paths in sections for path in paths}:
        shutil.copytree(repository / path, tmp_path / path)
    assert _run("--readme", tmp_path / "README.md") == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (
        repository / "README.md"
    ).read_text(encoding="utf-8")
