"""The commands that make a table: which, in which order, and that each is one of the program's.

Seen red under: --seeds not handed over; trials of LVIS used for keypoints; a checkpoint named by
another epoch; a row with --init pre-trained all the same; a finished step printed again; the exit
status of a failed step dropped; an option without effect accepted; pre-training begun without a
file that the benchmark needs later.
"""

from __future__ import annotations

import importlib
import json
import shlex

import pytest

from moco_transfer.cli import main as program
from moco_transfer.cli import reproduce


@pytest.fixture
def commands(capsys, tmp_path, monkeypatch):
    """Return a function from words to the commands that --dry-run prints, as lists of words."""
    monkeypatch.chdir(tmp_path)

    def run(*words, status=0):
        assert program.main(["reproduce", *words, "--dry-run"]) == status
        printed = capsys.readouterr()
        return [shlex.split(line)[1:] for line in printed.out.splitlines()] or printed.err

    return run


def test_commands__a_matrix_of_two_parts(commands):
    words = "table5 --only FPN_1x C4_2x --output out --init random --init moco=a.pkl".split()
    (benchmark,) = commands(*words, "--engine", "torchvision", "--num-gpus", "8")
    expected = (
        "benchmark --output out --tasks coco_R_50_FPN_1x coco_R_50_C4_2x --init random"
        " --init moco=a.pkl --seeds 1 --engine torchvision --num-gpus 8"
    )
    assert benchmark == expected.split()


def test_commands__as_many_seeds_as_the_paper_has_trials(commands):
    words = "table6 --only keypoint lvis --output out --init random".split()
    seeds = {tuple(c[c.index("--tasks") + 1 : c.index("--init")]): c[-1] for c in commands(*words)}
    assert seeds == {("coco_keypoint_R_50_FPN_2x",): "1", ("lvis_v0.5_R_50_FPN_2x",): "5"}
    (both,) = commands(*words, "--seeds", "3", "--finetune", "SOLVER.MAX_ITER", "9")
    assert both[-4:] == ["--seeds", "3", "SOLVER.MAX_ITER", "9"]


def test_commands__the_papers_own_supervised_row(commands):
    words = "table2 --only C4 --msra --output out --init supervised=R-50.pkl".split()
    (benchmark,) = commands(*words)
    assert "pascal_voc_R_50_C4_24k_msra" in benchmark


def test_commands__a_figure_of_pre_training(commands):
    """Each queue size is trained and then tested; K = 65536 is the config as it is."""
    found = commands("fig3", "--only", "MoCo", "256", "65536", "--images", "i", "--output", "o")
    short, own = "o/pretrain/moco_queue_size_256", "o/pretrain/moco"
    assert [command[0] for command in found] == ["pretrain", "linear"] * 2
    assert found[0][-6:] == [*"MOCO.QUEUE_SIZE 256 DATA.ROOT i/train OUTPUT_DIR".split(), short]
    assert found[1][1:6] == [
        f"{short}/checkpoint_0200.pth",
        *"--train i/train --test i/val".split(),
    ]
    assert "MOCO.QUEUE_SIZE" not in found[2] and found[2][-1] == own


def test_commands__pre_trained_rows_go_on_to_the_detector(commands, tmp_path):
    words = "v2-table1 --only moco_mlp moco_aug --images i --output o --init moco_aug=x.pth".split()
    words += ["--pretrain", "SOLVER.EPOCHS", "3", "SOLVER.STEPS", "()"]
    found = commands(*words)
    verbs = ["pretrain", "linear", "linear", "convert", "convert", "benchmark"]
    assert [command[0] for command in found] == verbs
    assert found[0][-1] == "o/pretrain/moco_mlp"
    assert {c[1] for c in found[1:5]} == {"o/pretrain/moco_mlp/checkpoint_0003.pth", "x.pth"}
    assert "moco_mlp=o/backbones/moco_mlp.pkl" in found[-1]
    assert "moco_aug=o/backbones/moco_aug.pkl" in found[-1]
    (tmp_path / "o" / "backbones").mkdir(parents=True)
    (tmp_path / "o" / "backbones" / "moco_aug.pkl").touch()
    assert ["convert", "x.pth", "o/backbones/moco_aug.pkl"] not in commands(*words)


def test_commands__a_row_of_ones_own(commands):
    words = "table1 --only MoCo --images i --output o --init mine=mine.pth --init moco=b.pth"
    found = commands(*words.split())
    assert [command[:2] for command in found] == [["linear", "b.pth"], ["linear", "mine.pth"]]


@pytest.mark.parametrize("table", ["fig3", "momentum", "table1", "table5", "a9", "v2-table1"])
def test_commands__each_is_accepted_by_its_verb(table, commands, monkeypatch):
    found = commands(table, "--images", "i", "--output", "o", "--init", "random")
    assert found
    monkeypatch.setattr(program, "torchrun_command", lambda *_: None)
    for verb, *words in found:
        module = importlib.import_module(f"moco_transfer.cli.{verb}")
        monkeypatch.setattr(module, "run", lambda args: 0)
        assert program.main([verb, *words]) == 0


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("table7", ["table7", "table6"]),
        ("table6 --only nothing", ["nothing"]),
        ("table6 --seeds 3", ["--seeds", "--output"]),
        ("table6 --init moco=a.pkl", ["--init", "--output"]),
        ("--output o --init random", ["table6"]),
        ("fig3 --output o --init random", ["--images"]),
        ("fig3 --output o --images i --pretrain SOLVER.MAX_ITER 5", ["SOLVER.EPOCHS"]),
        ("a6 --output o --images i", ["a6"]),
        ("table6 --output o --images i --init supervised=gone.pkl", ["supervised=gone.pkl"]),
        ("table6 --runs not_there", ["not_there"]),
        ("--reference --json", ["json"]),
        ("table6 --docs", ["--docs", "table6"]),
    ],
)
def test_commands__what_cannot_be_done_is_an_error(words, facts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert program.main(["reproduce", *words.split()]) == 2
    error = capsys.readouterr().err
    assert all(fact in error for fact in facts), error
    assert not list(tmp_path.iterdir())


def test_commands__a_failed_step_ends_the_run_with_its_status(monkeypatch, tmp_path, capsys):
    ran = []

    def run_program(command):
        ran.append(command[3])
        return -15 if command[3] == "linear" else 0

    monkeypatch.setattr(reproduce, "run_program", run_program)
    words = ["fig3", "--only", "MoCo", "256", "512", "--images", "i", "--output", str(tmp_path)]
    assert program.main(["reproduce", *words]) == 143
    assert ran == ["pretrain", "linear"]
    assert "848 GPU hours" in capsys.readouterr().out  # 53 h on 8 V100, twice


def test_json__of_the_ledger(capsys):
    assert program.main(["reproduce", "table2", "--only", "C4", "moco", "AP", "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert (cell["published"], cell["column"], cell["runs"]) == (55.9, "bbox/AP", [])
