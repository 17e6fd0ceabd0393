"""`moco-transfer report` as a user meets it: where the table goes, and what is refused.

Seen red under: --into writing before the markers were checked; an empty table instead of an error;
    a missing path not
refused; torch imported by the command. Written against, and not tried: --baseline not handed on.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

import pytest

from moco_transfer.cli import report
from moco_transfer.cli.options import add_options
from moco_transfer.runtime.errors import InputError, MissingFileError


def _run(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser, "report")
    return report.run(parser.parse_args([str(argument) for argument in arguments]))


def test_report__prints_the_table(three_rows, capsys):
    assert _run(three_rows) == 0
    assert "| moco | 56.2 ± 1.3 | 76.2 ± 1.3 | 61.2 ± 1.3 | **+2.5** |" in capsys.readouterr().out


def test_report__writes_files_instead_of_printing(three_rows, capsys):
    readme = three_rows / "README.md"
    readme.write_text("# T\n<!-- results:begin . -->\n<!-- results:end -->\nend\n")
    assert _run(three_rows, "--output", three_rows / "new/table.md") == 0
    assert _run("--into", readme) == 0
    assert capsys.readouterr().out == ""
    table = (three_rows / "new/table.md").read_text()
    assert table.startswith("### pascal_voc_R_18_FPN\n")
    assert (
        readme.read_text()
        == f"# T\n<!-- results:begin . -->\n\n{table.strip()}\n\n<!-- results:end -->\nend\n"
    )


def test_report__refuses_a_file_without_markers_and_leaves_it(three_rows):
    readme = three_rows / "README.md"
    readme.write_text("# T\n")
    with pytest.raises(InputError, match="README.md: expected <!-- results:begin FOLDER"):
        _run("--into", readme)
    assert readme.read_text() == "# T\n"
    with pytest.raises(MissingFileError, match="no.md does not exist"):
        _run("--into", three_rows / "no.md")


def test_report__refuses_when_there_is_no_run(tmp_path, make_run):
    with pytest.raises(MissingFileError, match="nowhere does not exist"):
        _run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="No readable run in .*no results.json in it or below it"):
        _run(tmp_path)
    make_run("bad", schema=99)
    with pytest.raises(InputError, match="has schema 99, expected 1"):
        _run(tmp_path)


def test_report__tabulates_500_runs_in_two_seconds_without_torch(tmp_path, results):
    classes = {f"AP-class{i}": 10.0 + i for i in range(80)}
    for i in range(500):
        bbox = {"AP": 40.0 + i % 7, "AP50": 60.0, "AP75": 45.0, "APs": 20.0, **classes}
        folder = tmp_path / f"run_{i:03d}"
        folder.mkdir()
        data = results(
            ("random", "supervised", "moco", "moco_v2")[i % 4],
            i // 20,
            task=f"task_{i // 4 % 5}",
            bbox=bbox,
        )
        (folder / "results.json").write_text(json.dumps(data))
    code = (
        "import argparse, sys; from moco_transfer.cli import options, report;"
        "p = argparse.ArgumentParser(); options.add_options(p, 'report');"
        "report.run(p.parse_args(sys.argv[1:])); assert 'torch' not in sys.modules"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU seconds, so that a busy machine does not fail the test; on an idle one the wall clock
    # shows the same.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.stdout.count("\n| moco_v2 | ") == 5
    assert done.stdout.count(" 25 | torchvision |") == 20
    assert seconds < 2.0


def test_report__baseline(three_rows, capsys):
    assert _run(three_rows, "--baseline", "moco") == 0
    text = capsys.readouterr().out
    assert (
        "| supervised | 53.7 ± 0.8 | 73.7 ± 0.8 | 58.7 ± 0.8 | **-2.5** |" in text
        and "to the moco row" in text
    )
    with pytest.raises(
        InputError,
        match="--baseline sup: no run is of that row. Rows are moco, random, supervised.",
    ):
        _run(three_rows, "--baseline", "sup")
