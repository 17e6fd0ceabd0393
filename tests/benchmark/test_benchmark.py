"""A matrix as a user runs it: whole, continued, and checked before it starts.

Seen red under: complete runs started again; weights not compared with those of a complete run; the
check of the data left out; an image's size not looked at.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision

from moco_transfer.benchmark.matrix import Initialisation, Matrix, Task
from moco_transfer.benchmark.run import Failure, Stopped
from moco_transfer.cli import benchmark as verb
from moco_transfer.convert import convert_checkpoint

ROWS = ("random", "supervised")


def records(output: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(output.rglob("results.json"))]


def copy(output: Path, target: Path) -> Path:
    """Copy a matrix; its files know their folder."""
    shutil.copytree(output, target)
    return target


def test_benchmark__makes_every_run_and_the_table(whole):
    assert [(r["init"], r["seed"], r["task"]) for r in records(whole)] == [
        (row, 0, "demo_R_18_FPN") for row in ROWS
    ]
    assert sorted(file.parent for file in whole.rglob("results.json")) == [
        whole / "demo_R_18_FPN" / row / "seed0" for row in ROWS
    ]
    page = (whole / "report.html").read_text()
    assert "Training loss over iterations" in page and 'src="data:image/' in page  # the sheet
    table = (whole / "table.md").read_text()
    assert all(f"| {row} |" in table for row in ROWS)


def test_benchmark__output_alone_continues_and_repeats_nothing(whole, benchmark, capsys):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("results.json")}
    assert benchmark("--output", whole) == 0
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("results.json")} == before
    out = capsys.readouterr().out
    assert "2 runs" in out and "| supervised |" in out


def test_benchmark__dry_run_prints_plan_and_commands_and_writes_nothing(
    matrix_words, benchmark, tmp_path, capsys
):
    output = tmp_path / "runs"
    words = ["--dry-run", *matrix_words, "--num-gpus", "2"]
    assert benchmark("--output", output, *words) == 0 and not output.exists()
    out = capsys.readouterr().out
    commands = [line for line in out.splitlines() if " -m moco_transfer train " in line]
    assert len(commands) == 2
    assert all(" train --num-gpus 2 --config-file demo_R_18_FPN " in c for c in commands)
    assert out.count("scenes_train: 6 images") == 1  # the plan of one run of the task
    assert str(output / "demo_R_18_FPN/random/seed0") in out
    assert "random initialisation" in out and "supervised.pkl (supervised): " in out


def test_benchmark__stopped_by_a_signal(matrix_words, benchmark, tmp_path, monkeypatch, capsys):
    def stop(*arguments, **more):
        raise Stopped(15, num_running=1, num_killed=0)

    monkeypatch.setattr("moco_transfer.benchmark.run.run_cells", stop)
    assert benchmark("--output", tmp_path / "runs", *matrix_words) == 143
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"moco-transfer benchmark --output {tmp_path / 'runs'}" in last


def test_benchmark__refuses_to_mix_runs_of_other_weights_or_configs(
    whole, matrix_words, benchmark, tmp_path, capsys
):
    output = copy(whole, tmp_path / "runs")
    file = output / "demo_R_18_FPN" / "supervised" / "seed0" / "results.json"
    record = json.loads(file.read_text())
    record["weights"]["sha256"] = "0" * 64
    file.write_text(json.dumps(record))
    assert benchmark("--output", output, *matrix_words, "SOLVER.MAX_ITER", "8") == 2
    error = capsys.readouterr().err
    assert error.count("holds another run (config hash") == 2
    assert f"sha256 of the weights '{'0' * 64}', now" in error
    assert len(records(output)) == 2


def test_benchmark__holds_an_interrupted_run_against_the_matrix(
    whole, matrix_words, benchmark, tmp_path, capsys
):
    output = copy(whole, tmp_path / "runs")
    folder = output / "demo_R_18_FPN" / "random" / "seed0"
    (folder / "results.json").unlink()
    assert benchmark("--output", output, *matrix_words, "SOLVER.BASE_LR", "0.004") == 2
    error = capsys.readouterr().err
    assert (
        str(folder / "checkpoint_0000006.pth") in error and "SOLVER.BASE_LR 0.015 -> 0.004" in error
    )
    # The same matrix evaluates it again.
    assert benchmark("--output", output, *matrix_words) == 0
    assert records(output)[0]["metrics"] == records(whole)[0]["metrics"]


def test_benchmark__checks_everything_before_the_first_run(
    matrix_words, benchmark, tmp_path, capsys
):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34-00000000.pth")
    convert_checkpoint(tmp_path / "resnet34-00000000.pth", tmp_path / "deeper.pkl")
    tasks = ["demo_R_18_FPN", "pascal_voc_R_50_C4_24k", "no_such_config"]
    words = ["--tasks", *tasks, "--init", "gone=nowhere.pkl"]
    words += ["--init", f"deeper={tmp_path / 'deeper.pkl'}", "--init", "random"]
    start = matrix_words.index("--dataset")
    words += [*matrix_words[start:], "SOLVER.BASE_LR", "1.0"]
    assert benchmark("--output", tmp_path / "runs", *words) == 2
    assert not (tmp_path / "runs").exists()
    error = capsys.readouterr().err
    assert "Nothing was started" in error
    lines = error.splitlines()

    def faults(*parts):
        return [line for line in lines if all(part in line for part in parts)]

    assert len(faults("no_such_config from gone, deeper, random: ")) == 1
    assert len(faults("from gone: ", "nowhere.pkl")) == 1
    assert len(faults("from deeper", "deeper.pkl")) >= 1
    assert len(faults("demo_R_18_FPN from deeper, random: ", "SOLVER.IMS_PER_BATCH 2")) == 1


def test_benchmark__label_fraction(matrix_words, benchmark, tmp_path, capsys):
    output = tmp_path / "runs"
    words = ["--label-fraction", "0.5", "SOLVER.MAX_ITER=2", *matrix_words, "SOLVER.STEPS=1"]
    file = output / "subsets" / "demo_R_18_FPN_50pct.json"
    assert benchmark("--output", output, "--dry-run", *words) == 0 and not output.exists()
    assert f"--label-subset {file}" in capsys.readouterr().out
    assert benchmark("--output", output, *words) == 0
    subset = json.loads(file.read_text())
    assert len(subset["images"]["scenes_train"]) == 3  # of six
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for record, row in zip(records(output), ROWS, strict=True):
        assert (record["init"], record["task"]) == (row, "demo_R_18_FPN_50pct")
        labels = record["dataset"]["label_subset"]
        assert (labels["fraction"], labels["seed"], labels["sha256"]) == (0.5, 0, sha256)
    assert "50 % of its labelled images: 3" in (output / "table.md").read_text()

    # Killed between the two rows: the second one gets the list of the first.
    gone = output / "demo_R_18_FPN_50pct" / "supervised" / "seed0"
    shutil.rmtree(gone)
    assert benchmark("--output", output) == 0
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256
    assert records(output)[1]["dataset"]["label_subset"] == labels

    # Continuing leaves the file as it is; a subset of another draw is another matrix's.
    before = (file.stat().st_mtime_ns, file.stat().st_ino)
    assert benchmark("--output", output, "--dry-run") == 0
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    subset["seed"] = 1
    file.write_text(json.dumps(subset))
    capsys.readouterr()
    assert benchmark("--output", output) == 2
    assert "seed 1; this matrix asks for 50 %" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: (file.unlink(), file.symlink_to("nowhere")),
    ],
    ids=["missing", "empty", "broken link"],
)
def test_benchmark__checks_every_image(scenes, benchmark, tmp_path, damage, request, capsys):
    root = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    last = (root / "ImageSets" / "Main" / "test.txt").read_text().split()[-1]
    damage(next((root / "JPEGImages").glob(f"{last}.*")))
    number = request.node.callspec.indices["damage"]
    words = ["--tasks", "demo_R_18_FPN", "--init", "random"]
    for split in ("train", "test"):
        flag = f"holes_{split}{number}=voc:{root}:{split}:{root / 'classes.txt'}"
        words += ["--dataset", flag]
    words += ["DATASETS.TRAIN", f"holes_train{number}", "DATASETS.TEST", f"holes_test{number}"]
    assert benchmark("--output", tmp_path / "runs", *words, "MODEL.DEVICE", "cpu") == 2
    error = capsys.readouterr().err
    assert f"{last}." in error and "1 of" in error and "3 images" in error
    assert not (tmp_path / "runs").exists()


def test_finish__names_the_failures_when_no_table_can_be_made(tmp_path, capsys):
    matrix = Matrix(tmp_path, (Task("t", "c"),), (Initialisation("random"),))
    (cell,) = matrix.cells()
    cell.folder.mkdir(parents=True)
    (cell.folder / "results.json").write_text("{")
    (tmp_path / "table.md").write_text("a table of yesterday")
    assert verb._finish(matrix, [Failure(cell, 1, "it broke")]) == 1
    out, error = capsys.readouterr()
    assert f"FAILED {cell.folder}: exit status 1: it broke" in out and "1 run(s) failed" in out
    assert "yesterday" not in out and "wrote" not in out and "No readable run" in error
    assert (tmp_path / "table.md").read_text() == "a table of yesterday"
    assert verb._finish(matrix, []) == 1  # nor is it a success when no run failed just now


def test_finish__takes_the_baseline_where_it_has_a_run(tmp_path, results):
    rows = (Initialisation("random"), Initialisation("sup", "s.pkl"))
    matrix = Matrix(tmp_path, (Task("pascal_voc_R_18_FPN", "demo_R_18_FPN"),), rows, baseline="sup")
    for cell in matrix.cells():
        cell.folder.mkdir(parents=True)
        record = results(cell.init.name, bbox={"AP": 10.0 + len(cell.init.name)})
        (cell.folder / "results.json").write_text(json.dumps(record))
    verb._finish(matrix, [])
    assert "| random | 16.0 | – | +3.0 |" in (tmp_path / "table.md").read_text()
    assert "difference of the means to the sup row" in (tmp_path / "report.html").read_text()
    shutil.rmtree(matrix.cells()[1].folder)
    assert verb._finish(matrix, []) == 0
    assert "| random | 16.0 |" in (tmp_path / "table.md").read_text()


def test_benchmark__shots_of_each_row_survive_a_restart(matrix_words, benchmark, tmp_path, capsys):
    output = tmp_path / "runs"
    short = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "1"]
    words = ["--shots", "2", "--seeds", "2", "--subset-per-seed", *matrix_words, *short]
    assert benchmark("--output", output, *words) == 0
    files = sorted((output / "subsets").iterdir())
    task = "demo_R_18_FPN"
    names = [f"{task}_2shot_seed{seed}.json" for seed in (0, 1)]
    assert [file.name for file in files] == names
    used: dict[str, set[str]] = {}
    for record in records(output):
        subset = record["dataset"]["label_subset"]
        used.setdefault(f"{record['task']}_seed{record['seed']}.json", set()).add(subset["sha256"])
        assert subset["shots"] == 2 and len(subset["objects"]) == 8
    digests = {file.name: {hashlib.sha256(file.read_bytes()).hexdigest()} for file in files}
    assert used == digests  # of both rows
    table = (output / "table.md").read_text()
    assert table.count("### ") == 1 and "| random |" in table and "| 2 | torchvision |" in table

    # Killed between two runs: the results of one are not there yet; the lists are.
    gone = output / f"{task}_2shot" / "supervised" / "seed1"
    shutil.rmtree(gone)
    before = [file.read_bytes() for file in files]
    capsys.readouterr()
    assert benchmark("--output", output) == 0
    assert [file.read_bytes() for file in files] == before
    again = json.loads((gone / "results.json").read_text())["dataset"]["label_subset"]["sha256"]
    assert {again} == digests[f"{task}_2shot_seed1.json"]

    # Lists of other images or of another amount: nothing starts.
    files[1].write_bytes(before[0])
    assert benchmark("--output", output) == 2
    assert "holds 2 objects of each class, seed 0;" in capsys.readouterr().err
    data = json.loads(before[1])
    data["images"]["scenes_train"].pop()
    files[1].write_text(json.dumps(data))
    assert benchmark("--output", output) == 2
    assert "its images are not those" in capsys.readouterr().err
    del data["sha256_of_images"]
    files[1].write_text(json.dumps(data))
    assert benchmark("--output", output) == 2
    assert "holds another run (label subset" in capsys.readouterr().err


def test_benchmark__detector_of_other_classes(whole, matrix_words, benchmark, tmp_path, capsys):
    detector = next((whole / "demo_R_18_FPN" / "random" / "seed0").glob("checkpoint_*.pth"))
    two = [
        word.replace("scenes_", "two_").replace("classes.txt", "classes.txt:classes=a,b")
        for word in matrix_words
    ]
    names = (torch.load(detector, weights_only=True))["class_names"]
    two = [word.replace("classes=a,b", f"classes={names[0]},{names[5]}") for word in two]
    words = [*two, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "1"]
    start = words.index("--dataset")
    words = ["--tasks", "demo_R_18_FPN", "--init", f"coco={detector}", *words[start:]]
    assert benchmark("--output", tmp_path / "runs", "--dry-run", *words) == 0
    assert "box predictor: other class names (8 there, 2 here)" in capsys.readouterr().out
    assert benchmark("--output", tmp_path / "runs", *words) == 0
    (record,) = records(tmp_path / "runs")
    assert record["weights"]["kind"] == "detector"
    assert list(record["weights"]["parts"]) == ["box predictor"]
    assert record["weights"]["trained_on"] == ["scenes_train"]
    table = (tmp_path / "runs" / "table.md").read_text()
    assert "| coco† | detector on scenes_train |" in table and "box predictor: new" in table
