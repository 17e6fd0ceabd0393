"""`moco-transfer sheet` over several tables: one that cannot be drawn does not cost the others
theirs.

Seen red under: the first table's error ending the loop. Written against, and not tried: its error
    swallowed; an unbalanced quotation mark in
a recorded command.
"""

from __future__ import annotations

import argparse

import pytest

from moco_transfer.cli import sheet
from moco_transfer.cli.options import add_options
from moco_transfer.report import build_tables, read_runs
from moco_transfer.runtime.errors import InputError


def _run(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser, "sheet")
    return sheet.run(parser.parse_args([str(argument) for argument in arguments]))


def test_sheet__goes_on_past_a_table_that_cannot_be_drawn(make_run, tmp_path, monkeypatch):
    for task in ("a", "b", "c"):
        make_run(task, task=task)
    drawn = []

    def draw(path, dataset, chosen, images):
        if "_b_" in path.name:
            raise InputError("no predictions")
        drawn.append(path.name)

    monkeypatch.setattr(sheet, "_test_set", lambda table: None)
    monkeypatch.setattr(sheet, "_draw", draw)
    with pytest.raises(InputError, match=r"^no sheet of b: no predictions$"):
        _run(tmp_path)
    assert [name.split("_")[1] for name in drawn] == ["a", "c"]


def test_sheet__a_recorded_command_that_no_shell_could_read(make_run, tmp_path):
    make_run(
        "a",
        command="moco-transfer train --dataset 'nowhere_test=",
        dataset={"train": [], "test": ["nowhere_test"]},
    )
    (table,) = build_tables(read_runs([tmp_path])[0])
    with pytest.raises(InputError, match="nowhere_test"):
        sheet._test_set(table)
