"""The matrix: which runs it has, in which order, under which words; and what is no matrix.

Seen red under: seeds as the innermost loop; the subset's words left out; a name given twice
    accepted; ``random=FILE`` accepted; a relative folder or list of label images left as it was.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moco_transfer.benchmark.matrix import (
    Initialisation,
    Matrix,
    Task,
    parse_init,
    parse_seeds,
    parse_task,
    read_matrix,
)
from moco_transfer.data.annotations.label_subset import LabelDraw
from moco_transfer.runtime.errors import InputError, MissingFileError

YAML = """
tasks:
  - coco_R_50_FPN_1x
  - name: cells
    config: own_R_18_FPN_small
    datasets: ["a=voc:ROOT:train:x,y"]
    overrides: {DATASETS.TRAIN: a, SOLVER.MAX_ITER: 90}
inits: {random: "", moco: moco.pkl}
seeds: [3, 5]
label_fractions: [0.1, 1]
overrides: [DATALOADER.NUM_WORKERS, 0]
"""


@pytest.fixture
def matrix(tmp_path):
    (tmp_path / "m.yaml").write_text(YAML)
    return read_matrix(tmp_path / "m.yaml", "out")


def test_matrix__runs_every_row_before_the_next_seed(matrix):
    folders = [str(cell.folder) for cell in matrix.cells()]
    assert folders[:8] == [
        "out/coco_R_50_FPN_1x_10pct/random/seed3",
        "out/coco_R_50_FPN_1x_10pct/moco/seed3",
        "out/coco_R_50_FPN_1x/random/seed3",
        "out/coco_R_50_FPN_1x/moco/seed3",
        "out/cells_10pct/random/seed3",
        "out/cells_10pct/moco/seed3",
        "out/cells/random/seed3",
        "out/cells/moco/seed3",
    ]
    assert len(folders) == len(set(folders)) == 16 and all(
        folder.endswith("seed5") for folder in folders[8:]
    )


def test_matrix__words_of_a_run(matrix):
    assert matrix.arguments(matrix.cells()[5]) == [
        "--config-file", "own_R_18_FPN_small", "--engine", "auto",
        "--task", "cells", "--init", "moco", "--resume",
        "--label-subset", "out/subsets/cells_10pct.json", "--dataset", "a=voc:ROOT:train:x,y",
        "DATALOADER.NUM_WORKERS", "0", "DATASETS.TRAIN", "a", "SOLVER.MAX_ITER", "90",
        "MODEL.WEIGHTS", "moco.pkl", "SEED", "3", "OUTPUT_DIR", "out/cells_10pct/moco/seed3",
    ]  # fmt: skip
    assert "--label-subset" not in matrix.arguments(matrix.cells()[7])


def test_matrix__shots_and_a_subset_for_each_seed(matrix, tmp_path):
    more = {"label_fractions": (), "shots": (1, 5)}
    shots = replace(matrix, **more)
    folders = dict.fromkeys(cell.folder.parts[1] for cell in shots.cells())
    names = [f"{task}_{k}shot" for task in ("coco_R_50_FPN_1x", "cells") for k in (1, 5)]
    assert list(folders) == names
    files = {str(shots.subset_file(cell)) for cell in shots.cells()}
    assert files == {f"out/subsets/{name}.json" for name in names}
    each = replace(matrix, label_fractions=(1.0,), shots=(5,), subset_per_seed=True)
    files = {(cell.labels.seed, str(each.subset_file(cell))) for cell in each.cells()}
    names = ("cells", "coco_R_50_FPN_1x")
    assert files == {(0, "None")} | {
        (seed, f"out/subsets/{name}_5shot_seed{seed}.json") for seed in (3, 5) for name in names
    }
    (tmp_path / "again.yaml").write_text(each.dump())
    assert read_matrix(tmp_path / "again.yaml", "out") == each


def test_matrix__dump_reads_as_the_same(matrix, tmp_path):
    (tmp_path / "again.yaml").write_text(matrix.dump())
    assert read_matrix(tmp_path / "again.yaml", "out") == matrix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: [a]\ninit: {random: ''}", "unknown key 'init'. Did you mean 'inits'?"),
        ("tasks: [a]", "The matrix has no init"),
        ("inits: {random: ''}", "The matrix has no task"),
        ("tasks: [a]\ninits: {random: x.pkl}", "random takes no file"),
        ("tasks: [a]\ninits: {moco: ''}", "a file is missing"),
        ("tasks: [{name: b}]\ninits: {random: ''}", "is no task"),
        (
            "tasks: [{config: b, overides: []}]\ninits: {random: ''}",
            "unknown key 'overides'. Did you mean 'overrides'?",
        ),
        ("tasks: [a, x/a.yaml]\ninits: {random: ''}", "task 'a' is given twice"),
        ("tasks: [a]\ninits: {random: ''}\nseeds: 0", "seeds is 0"),
        ("tasks: [a]\ninits: {random: ''}\nseeds: [1, 1]", "list of different numbers"),
        ("tasks: [a]\ninits: {random: ''}\nseeds: true", "seeds is True"),
        (
            "tasks: [a]\ninits: {random: ''}\nlabel_fractions: [0]",
            "holds 0, expected numbers in (0, 1]",
        ),
        ("tasks: [a]\ninits: {random: ''}\nlabel_fractions: [ten]", "label_fractions holds 'ten'"),
        ("tasks: [a]\ninits: {random: ''}\nshots: [1.5]", "shots holds 1.5, expected whole"),
        ("tasks: [a]\ninits: {random: ''}\nsubset_per_seed: true", "--label-fraction below 1"),
        ("tasks: [a]\ninits: {random: ''}\noverrides: [SEED]", "expected pairs"),
        ("- a", "holds list"),
        ("tasks: [", "m.yaml is not readable yaml"),
    ],
)
def test_read_matrix__error(tmp_path, text, said):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError, match=".*") as error:
        read_matrix(tmp_path / "m.yaml", "out")
    assert said in str(error.value)


def test_read_matrix__missing_file():
    with pytest.raises(MissingFileError, match="nowhere.yaml does not exist"):
        read_matrix("nowhere.yaml", "out")


def test_matrix__names_that_name_no_folder():
    with pytest.raises(InputError, match="init name 'a/b' cannot name a folder"):
        Matrix(Path("out"), (Task("a", "a"),), (Initialisation("a/b", "x"),))


def test_parse():
    assert parse_init("moco=out/a=b.pkl") == Initialisation("moco", "out/a=b.pkl")
    file = "configs/detection/coco_R_50_C4_1x.yaml"
    assert parse_task(file) == Task("coco_R_50_C4_1x", file)
    matrix = Matrix(Path("o"), (Task("a", "a"),), (Initialisation("random"),), parse_seeds(2))
    assert (matrix.seeds, matrix.amounts(0)) == ((0, 1), [LabelDraw()])


def test_matrix__saved_paths_hold_in_any_folder(tmp_path, monkeypatch):

    from moco_transfer.benchmark.matrix import read_matrix

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("")
    (tmp_path / "classes.txt").write_text("a\n")
    flags = (
        "a=voc:VOC:train:classes.txt",
        "b=voc:VOC:test:x,y:year=2007",
        "d=semantic:images:labels:x,y:list_file=lists/d.txt,label_ending=_ids.png:classes=y",
        "e=yolo:data.yaml:train",
        "c=coco:c.json:images",
    )
    tasks = (Task("t", "own.yaml", datasets=flags), Task("coco_R_50_C4_1x", "coco_R_50_C4_1x"))
    (tmp_path / "moco.pkl").touch()
    names = {"random": "", "moco": "moco.pkl", "v2": "moco_v2_800ep", "hub": "hf://me/mine"}
    rows = tuple(Initialisation(name, weights) for name, weights in names.items())
    matrix = Matrix(Path("runs"), tasks, rows, baseline="moco", datasets=flags[-1:])
    file = matrix.save()
    monkeypatch.chdir("/")
    saved = read_matrix(tmp_path / file, tmp_path / "runs")
    at = str(tmp_path)
    assert [(task.config, task.datasets) for task in saved.tasks] == [
        (
            f"{at}/own.yaml",
            (
                f"a=voc:{at}/VOC:train:{at}/classes.txt",
                f"b=voc:{at}/VOC:test:x,y:year=2007",
                f"d=semantic:{at}/images:{at}/labels:x,y:list_file={at}/lists/d.txt,"
                "label_ending=_ids.png:classes=y",
                f"e=yolo:{at}/data.yaml:train",
                f"c=coco:{at}/c.json:{at}/images",
            ),
        ),
        ("coco_R_50_C4_1x", ()),
    ]
    expected = ["", f"{at}/moco.pkl", "moco_v2_800ep", "hf://me/mine"]
    assert [init.weights for init in saved.inits] == expected and saved.baseline == "moco"
    assert saved.datasets == (f"c=coco:{at}/c.json:{at}/images",)
    assert json.dumps(saved.dump()) == json.dumps(saved.with_absolute_paths().dump())
