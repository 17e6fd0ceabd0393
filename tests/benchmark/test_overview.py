"""How far the runs are, and the hours that are left, by arithmetic shown here.

Seen red under: hours divided by the lanes instead of laid out on them; a resumed run's duration
taken for the whole. Written against, and not tried: the iterations of an interrupted run counted
again.
"""

from __future__ import annotations

import json

from moco_transfer.benchmark.cell_states import state_of
from moco_transfer.benchmark.launch import LaunchSettings
from moco_transfer.benchmark.matrix import Initialisation, Matrix, Task
from moco_transfer.benchmark.overview import overview, until_done
from moco_transfer.benchmark.plan import BenchmarkPlan, PlannedCell


def make_matrix(output, names=("random", "supervised", "moco"), **more):
    rows = tuple(Initialisation(name, "" if name == "random" else f"{name}.pkl") for name in names)
    return Matrix(output, (Task("t", "c"),), rows, **more)


def show(matrix, *, lanes=1):
    """Return the words of the line of task t, and the lines below it."""
    cells = tuple(PlannedCell(cell, state_of(cell), 1000, ()) for cell in matrix.cells())
    plan = BenchmarkPlan(matrix, cells, {})
    lines = overview(plan, LaunchSettings(), lanes=lanes).splitlines()
    return lines[2].split(), lines[3:]


def complete(results, folder, wall_sec, *, log=""):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results(task="t", wall_sec=wall_sec)))
    (folder / "log.txt").write_text(log)


def test_overview__hours_by_the_complete_runs(tmp_path, results):
    assert show(make_matrix(tmp_path)) == (["t", "1000", "0", "0", "3", "–"], [])
    complete(results, tmp_path / "t" / "random" / "seed0", 3600.0)
    complete(results, tmp_path / "t" / "supervised" / "seed0", 10800.0)
    row, below = show(make_matrix(tmp_path))  # one run of two hours is left
    assert row == ["t", "1000", "2", "0", "1", "2.00"] and below == ["  about 2.00 hours to go"]
    row, below = show(make_matrix(tmp_path, seeds=(0, 1)), lanes=3)  # 1 + 3 runs, three at a time
    assert row[2:] == ["2", "0", "4", "8.00"] and below == ["  about 4.00 hours to go"]


def test_overview__an_interrupted_run_has_its_rest_to_go(tmp_path, results):
    complete(results, tmp_path / "t" / "random" / "seed0", 7200.0)
    folder = tmp_path / "t" / "moco" / "seed0"
    folder.mkdir(parents=True)
    (folder / "last_checkpoint").write_text("checkpoint_0000750.pth\n")
    (folder / "metrics.json").write_text('{"iteration": 750}\n')
    row, below = show(make_matrix(tmp_path))
    assert row[2:] == ["1", "1", "1", "2.50"] and below == ["  about 2.50 hours to go"]


def test_overview__a_resumed_run_does_not_tell_its_duration(tmp_path, results):
    log = "resumed from x/checkpoint_0000750.pth: iteration 750 of 1000\n"
    complete(results, tmp_path / "t" / "random" / "seed0", 60.0, log=log)
    assert show(make_matrix(tmp_path))[0][2:] == ["1", "0", "2", "–"]
    complete(results, tmp_path / "t" / "supervised" / "seed0", 3600.0)
    assert show(make_matrix(tmp_path))[0][2:] == ["2", "0", "1", "1.00"]


def test_overview__names_the_baseline(tmp_path):
    def below(*names, baseline=""):
        return " ".join(show(make_matrix(tmp_path, names, baseline=baseline))[1])

    assert below("random", "supervised") == "" and below("moco") == ""
    assert "refer to the row random" in below("random", "sup")
    assert below("random", "sup", baseline="sup").endswith("refer to the row sup")
    assert "no row is called supervised or random" in below("a", "b")


def test_until_done():
    assert until_done([5.0, 1.0, 1.0, 1.0], 2) == 5.0
    assert until_done([1.0, 1.0, 5.0], 2) == 6.0  # in the order in which they are started
    assert until_done([3.0], 8) == 3.0
