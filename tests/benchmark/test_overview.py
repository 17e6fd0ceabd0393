"""The estimate: from timed seconds or complete runs to hours, by arithmetic shown here; and one
real timing.

Seen red under: the evaluation left out; hours divided by the lanes instead of laid out on them; a
    resumed run's duration taken for the whole.
Written against, and not tried: the iterations of an interrupted run counted again; a task timed
    once for each label fraction; Slurm's runs
timed here; every process of the timing given all cores.
"""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import pytest
from cli.conftest import TINY_DETECTION, words

from moco_transfer.benchmark.matrix import Initialisation, Task, build_matrix
from moco_transfer.benchmark.overview import overview, seconds_until_done
from moco_transfer.benchmark.timing import time_processes, time_task

PREPARED = {"t": SimpleNamespace(num_iterations=1000, num_test_images=500)}


def make_matrix(output, **more):
    rows = [
        Initialisation(name, "" if name == "random" else f"{name}.pkl")
        for name in ("random", "supervised", "moco")
    ]
    return build_matrix(output, **({"tasks": [Task("t", "c")], "inits": rows, "seeds": 1} | more))


def show(matrix, time_task, *, lanes=1, num_processes=1, launcher="local"):
    lines = overview(
        matrix,
        PREPARED,
        num_processes=num_processes,
        lanes=lanes,
        launcher=launcher,
        time_task=time_task,
    ).splitlines()
    return lines[2].split(), lines[3:]


def complete(results, folder, wall_sec, *, log=""):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results(task="t", wall_sec=wall_sec)))
    (folder / "log.txt").write_text(log)


@pytest.mark.parametrize(
    ("lanes", "num_processes", "total"),
    [
        # 1000 x 3.6 s and 500 images x 7.2 s are 1 h + 1 h a run; three runs
        (1, 1, "about 6.00 hours to go"),
        (
            2,
            1,
            "about 4.00 hours to go, 2 runs side by side",
        ),  # the third run starts when one of two has ended
        (3, 1, "about 2.00 hours to go, 3 runs side by side"),
        (
            1,
            2,
            "about 4.50 hours to go; without what the 2 processes of a run tell each other",
        ),  # images are shared, iterations timed so
    ],
)
def test_overview__hours_of_timed_runs(tmp_path, lanes, num_processes, total):
    row, below = show(
        make_matrix(tmp_path), lambda task: (3.6, 7.2), lanes=lanes, num_processes=num_processes
    )
    assert row == [
        "t",
        "1000",
        "500",
        "0",
        "0",
        "3",
        "3.60",
        "4.50" if num_processes == 2 else "6.00",
    ]
    assert below == [f"  {total}"]


def test_overview__an_interrupted_run_has_its_rest_to_go(tmp_path):
    folder = tmp_path / "t" / "moco" / "seed0"
    folder.mkdir(parents=True)
    (folder / "last_checkpoint").write_text("checkpoint_0000750.pth\n")
    (folder / "metrics.json").write_text('{"iteration": 750}\n')
    row, below = show(make_matrix(tmp_path), lambda task: (3.6, 7.2))
    assert row[3:] == ["0", "1", "2", "3.60", "5.25"] and below == [
        "  about 5.25 hours to go"
    ]  # 2 + 2 + 0.25 + 1


def test_overview__hours_of_complete_runs_before_any_timing(tmp_path, results):
    for name, wall_sec in {"random": 3600.0, "supervised": 10800.0}.items():
        complete(results, tmp_path / "t" / name / "seed0", wall_sec)
    row, below = show(make_matrix(tmp_path), None)
    assert row[3:] == ["2", "0", "1", "7.20", "2.00"] and below == ["  about 2.00 hours to go"]


def test_overview__a_resumed_run_does_not_tell_its_duration(tmp_path, results):
    complete(
        results,
        tmp_path / "t" / "random" / "seed0",
        60.0,
        log="resumed from x/checkpoint_0000750.pth: iteration 750 of 1000\n",
    )
    asked = []
    row, _ = show(make_matrix(tmp_path), lambda task: asked.append(task.name) or (3.6, 7.2))
    assert asked == ["t"] and row[3:] == ["1", "0", "2", "3.60", "4.00"]
    complete(results, tmp_path / "t" / "supervised" / "seed0", 3600.0)
    assert show(make_matrix(tmp_path), None)[0][3:] == ["2", "0", "1", "3.60", "1.00"]


def test_overview__times_a_task_once(tmp_path):
    asked = []
    matrix = make_matrix(tmp_path, label_fractions=[0.1, 1])
    text = overview(
        matrix,
        PREPARED,
        num_processes=1,
        lanes=1,
        launcher="local",
        time_task=lambda task: asked.append(task) or (3.6, 7.2),
    )
    assert len(asked) == 1 and "about 12.00 hours to go" in text


def test_overview__says_what_it_does_not_know(tmp_path):
    assert show(make_matrix(tmp_path), lambda task: None) == (
        ["t", "1000", "500", "0", "0", "3", "–", "–"],
        [],
    )
    row, below = show(make_matrix(tmp_path), None, launcher="slurm")
    assert row[-2:] == ["–", "–"] and "nothing is timed here" in below[0]


def test_overview__names_the_baseline(tmp_path):
    def said(*names, baseline=""):
        rows = [Initialisation(name) for name in names]
        return show(make_matrix(tmp_path, inits=rows, baseline=baseline), None)[1]

    assert said("random", "supervised") == [] and said("moco") == []
    assert said("random", "sup") == [
        "  differences refer to the row random (no row is called supervised; --baseline NAME takes"
        " another)"
    ]
    assert said("random", "sup", baseline="sup") == ["  differences refer to the row sup"]
    assert said("a", "b")[0].startswith(
        "  no row is called supervised or random: the table will have no differences"
    )


def test_seconds_until_done():
    assert seconds_until_done([5.0, 1.0, 1.0, 1.0], 2) == 5.0
    assert seconds_until_done([1.0, 1.0, 5.0], 2) == 6.0  # in the order in which they are started
    assert seconds_until_done([3.0], 8) == 3.0


CHILD = (
    "import os, sys\nassert sys.stdin.readline() == 'words\\n'\nprint('noise'); print('ready',"
    " flush=True); sys.stdin.readline()\nprint('seconds', os.environ['OMP_NUM_THREADS'],"
    " os.environ.get('CUDA_VISIBLE_DEVICES', '-1'), flush=True)\n"
)


def test_time_processes__share_the_machine_as_runs_do(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    # Two threads each; GPUs 4, 7, 4: mean 5.
    assert time_processes(
        [sys.executable, "-c", CHILD], "words", copies=3, lanes=4, num_gpus=2
    ) == (2.0, 5.0)


def test_time_processes__that_end_early_are_named(caplog):
    command = [sys.executable, "-c", "raise SystemExit('out of memory')"]
    assert time_processes(command, "words", copies=2, lanes=2, num_gpus=0) is None
    assert "the hours cannot be estimated: out of memory" in caplog.text


def test_time_task__really_times(scenes, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data = [f"scenes_{s}=voc:{scenes}:{s}:{scenes / 'classes.txt'}" for s in ("train", "test")]
    names = ["DATASETS.TRAIN", "scenes_train", "DATASETS.TEST", "scenes_test"]
    task = Task("demo_R_18_FPN", "demo_R_18_FPN", tuple(data), (*names, *words(TINY_DETECTION)))
    matrix = build_matrix(
        "nowhere", tasks=[task], inits=[Initialisation("random")], engine="torchvision"
    )
    seconds = time_task(matrix, task, num_processes=1, lanes=1, runs=1, num_gpus=0)
    assert seconds is not None and 0.001 < seconds[0] < 60 and 0.0005 < seconds[1] < 60
