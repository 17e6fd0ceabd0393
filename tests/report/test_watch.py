"""`report --watch` on a folder that grows: what each version of the page shows, and how it ends.

Seen red under: the lock not asked; the last page with its reload; a failed run counted as running;
the tables made once only; a run without results named as a fault; the end at the last result while
the benchmark still holds the folder; the heartbeats not read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time

import pytest
from test_page import _Page

from moco_transfer.benchmark import watch as watching
from moco_transfer.benchmark.cell_states import ProgressNotes
from moco_transfer.benchmark.launch import output_lock
from moco_transfer.benchmark.matrix import Initialisation, Matrix, Task
from moco_transfer.cli.main import main


class Folder:
    """The output folder of a matrix of two rows with two seeds, as a benchmark fills it."""

    def __init__(self, path, make_run):
        rows = (Initialisation("random"), Initialisation("moco", "m.pkl"))
        self.matrix = Matrix(path, (Task("voc", "c"),), rows, seeds=(0, 1))
        self.matrix.save()
        self.cells = self.matrix.cells()
        self.notes = ProgressNotes(path, {cell.folder: 400 for cell in self.cells})
        self.make_run, self.path, self.failed = make_run, path, {}
        self.lock = contextlib.ExitStack()

    def starts(self):
        self.lock.enter_context(output_lock(self.path))
        self.notes.write([], {})

    def ends(self):
        self.lock.close()

    def runs(self, number):
        folder = self.cells[number].folder
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text('{"iteration": 120, "loss_rpn_cls": 0.5}\n')
        self.notes.write([self.cells[number]], self.failed)

    def completes(self, number, ap=10.0):
        cell = self.cells[number]
        made = self.make_run("one", cell.init.name, cell.seed, task="voc", bbox={"AP": ap})
        cell.folder.mkdir(parents=True, exist_ok=True)
        made.joinpath("results.json").rename(cell.folder / "results.json")
        made.rmdir()
        self.notes.write([], self.failed)

    def fails(self, number):
        self.failed[self.cells[number].folder] = "exit status 3: <script>it broke"
        self.notes.write([], self.failed)


@pytest.fixture
def folder(tmp_path, make_run):
    path = tmp_path / "out"
    path.mkdir()
    found = Folder(path, make_run)
    yield found
    found.ends()


@pytest.fixture
def watch(folder, monkeypatch):
    """Return a function that watches the folder, takes a step after each page that is written, and
    returns the status and the pages.
    """

    def run(*steps, words=()):
        left, pages = list(steps), []
        write = watching.atomic_write_text

        def written(file, text):
            write(file, text)
            pages.append(text)
            if left:
                for action in left.pop(0):
                    action()

        monkeypatch.setattr(watching, "atomic_write_text", written)
        monkeypatch.setattr(watching, "PERIOD_SEC", 0.001)
        status = main(["report", str(folder.path), "--watch", *map(str, words)])
        assert not left, "it ended before the last step"
        return status, pages

    return run


def _states(text):
    """Return the table of runs: init -> the cells of its seeds."""
    table = next(table for table in _Page(text).tables if table[0][:2] == ["task", "init"])
    return {row[1]: row[2:] for row in table[1:]}


def _reloads(text):
    return 'id="reload"' in text and 'http-equiv="refresh"' in text


def test_watch__marks_runs_and_ends_with_the_matrix(folder, watch, capsys):
    folder.starts()
    folder.runs(0)
    status, pages = watch(
        [lambda: folder.completes(0, 12.5), lambda: folder.runs(1)],
        [lambda: folder.completes(1, 30.0), lambda: folder.completes(2), lambda: folder.runs(3)],
        [lambda: folder.completes(3)],
        [folder.ends],
    )
    assert status == 0 and len(pages) == 5
    first, second, *_, last = pages
    waits = "·missing"
    assert _states(first) == {"random": ["▶running120 of 400", waits], "moco": [waits, waits]}
    assert _states(second)["random"] == ["✓complete12.5", waits]
    assert _states(second)["moco"] == ["▶running120 of 400", waits]
    assert "1 of 4 runs complete, 1 running, 2 to run." in re.sub(r"\s+", " ", second)
    # Its table comes with its first result; a run without results is no fault of the folder.
    assert [len(_Page(page).tables) for page in pages] == [1, 3, 3, 3, 3]
    assert all("has no results.json" not in page for page in pages)
    assert _states(last)["moco"] == ["✓complete30.0", "✓complete10.0"]
    assert [_reloads(page) for page in pages] == [True] * 4 + [False]
    assert (folder.path / "report.html").read_text() == last
    assert "4 complete" in capsys.readouterr().out.splitlines()[-1]


def test_watch__names_failed_runs_and_ends_with_the_benchmark(folder, watch):
    folder.starts()
    page = folder.path / "page.html"
    status, pages = watch(
        [lambda: folder.runs(0)],
        [lambda: folder.fails(0)],
        [lambda: [folder.completes(number) for number in (1, 2, 3)]],
        [folder.ends],
        words=["--output", page],
    )
    assert status == 1 and page.read_text() == pages[-1]
    assert _states(pages[2])["random"][0] == "✗failed"
    named = f"{folder.cells[0].folder}: exit status 3: <script>it broke"
    assert [named in "".join(_Page(page).texts) for page in pages] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_watch__names_a_run_that_hangs(folder, watch):
    folder.starts()
    folder.runs(0)
    beat = {
        "rank": 0,
        "host": "h",
        "pid": 77,
        "work": "fine-tuning",
        "iteration": 130,
        "total": 400,
    }
    beat |= {"time": time.time() - 900, "idle_sec": 2.0, "at": "a:1"}
    file = folder.cells[0].folder / "heartbeat.json"
    status, pages = watch(
        [lambda: file.write_text(json.dumps(beat))],
        [lambda: [file.unlink(), folder.ends()]],
        [lambda: [folder.completes(number) for number in range(4)]],
    )
    assert _states(pages[0])["random"][0] == "▶running120 of 400"
    assert _states(pages[1])["random"][0] == "▶running120 of 400; hangs"
    assert "77 on h" in pages[1] and "130 of 400" in pages[1] and "15 min" in pages[1]
    assert "77 on h" not in pages[2]


def test_watch__waits_while_a_stopped_benchmark_can_continue(folder, watch):
    folder.runs(0)
    (folder.cells[0].folder / "last_checkpoint").write_text("c.pth")
    status, pages = watch(
        [folder.starts, lambda: folder.completes(0)],
        [lambda: [folder.completes(number) for number in (1, 2, 3)], folder.ends],
    )
    assert status == 0
    assert _states(pages[0])["random"][0] == "‖interrupted120 of 400"  # the notes call it running
    assert ["No benchmark is running." in page for page in pages] == [True, False, False]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_watch__ends_when_asked(folder, watch, signum):
    folder.starts()
    folder.runs(0)
    status, pages = watch([lambda: os.kill(os.getpid(), signum)])
    assert status == 128 + signum
    assert [_reloads(page) for page in pages] == [True, False]
    assert _states(pages[-1])["random"][0] == "▶running120 of 400"


def test_watch__is_one_file_that_needs_nothing_else(folder, watch):
    folder.starts()
    folder.completes(0)
    _, pages = watch([lambda: os.kill(os.getpid(), signal.SIGINT)])
    for text in pages:
        page = _Page(text)
        assert len(page.ids) == len(set(page.ids))
        assert all(address.startswith(("#", "data:")) for address in page.addresses)


def test_watch__of_a_damaged_note(folder, watch):
    folder.starts()
    (folder.path / "progress.json").write_text('{"running": 3')
    _, pages = watch([lambda: os.kill(os.getpid(), signal.SIGINT)])
    assert _states(pages[0])["random"] == ["·missing", "·missing"]


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["{}", "--watch", "--format", "csv"], "--watch"),
        (["{}", "{}", "--watch"], "--watch"),
        (["--watch"], "--watch"),
        (["{}/..", "--watch"], "matrix.yaml"),
        (["{}/nowhere", "--watch"], "matrix.yaml"),
    ],
)
def test_watch__refuses_what_is_no_matrix(folder, words, fact, capsys):
    assert main(["report", *(word.format(folder.path) for word in words)]) == 2
    assert fact in capsys.readouterr().err
