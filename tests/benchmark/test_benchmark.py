"""A matrix as a user runs it: whole, killed, damaged, with a run that fails, and checked before it
starts.

Seen red under: complete runs started again; the children left alive by SIGKILL; the first failure
    ending the matrix; weights not compared
with those of a complete run; the check of the data left out; an image's size not looked at.
Written against, and not tried: the optimiser's state not restored; a complete run started again by
    --resume; files of label subsets written by --dry-run, or drawn
again; failures listed after a report that fails.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from cli.conftest import TINY_DETECTION, environment, moco_transfer
from cli.conftest import words as tiny

from moco_transfer.benchmark.build import prepare
from moco_transfer.benchmark.launch import output_lock
from moco_transfer.benchmark.matrix import Initialisation, Task, build_matrix
from moco_transfer.benchmark.run import Failure
from moco_transfer.cli import benchmark
from moco_transfer.convert import convert_checkpoint
from moco_transfer.runtime.errors import InputError


@pytest.fixture(scope="module")
def whole(tmp_path_factory, matrix_words) -> Path:
    """An uninterrupted matrix of two rows with one seed."""
    output = tmp_path_factory.mktemp("whole") / "runs"
    done = moco_transfer("benchmark", "--output", output, *matrix_words)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def metrics(output: Path) -> dict[str, dict]:
    files = sorted(output.rglob("results.json"))
    return {
        str(file.parent.relative_to(output)): json.loads(file.read_text())["metrics"]
        for file in files
    }


def stamps(output: Path) -> dict[str, int]:
    return {
        str(file.relative_to(output)): file.stat().st_mtime_ns
        for file in output.rglob("results.json")
    }


def copy(output: Path, target: Path) -> Path:
    shutil.copytree(output, target)
    return target


def test_benchmark__makes_every_run_and_the_table(whole):
    assert set(metrics(whole)) == {"demo_R_18_FPN/random/seed0", "demo_R_18_FPN/supervised/seed0"}
    page = (whole / "report.html").read_text()
    assert (
        "Training loss over iterations" in page
        and "Detections of each initialisation beside the ground truth" in page
    )
    assert 'src="data:image/svg+xml;base64,' in page, "the sheet that was drawn is not in the page"
    table = (whole / "table.md").read_text()
    assert "| random |" in table and "| supervised |" in table
    records = [json.loads(file.read_text()) for file in sorted(whole.rglob("results.json"))]
    assert [(r["init"], r["seed"], r["task"]) for r in records] == [
        ("random", 0, "demo_R_18_FPN"),
        ("supervised", 0, "demo_R_18_FPN"),
    ]


def test_benchmark__output_alone_goes_on_and_repeats_nothing(whole):
    before = stamps(whole)
    done = moco_transfer("benchmark", "--output", whole)
    assert done.returncode == 0 and stamps(whole) == before
    assert "2 runs" in done.stdout and "| supervised |" in done.stdout


def start(output, *words) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "moco_transfer.cli.main",
        "benchmark",
        "--output",
        str(output),
        *words,
    ]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def wait_for_checkpoint(process, folder):
    until = time.monotonic() + 240
    while not (folder / "last_checkpoint").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)


def files_of(folder) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def counts(stdout) -> list[str]:
    """Return the numbers of complete, interrupted and missing runs that the overview shows."""
    return next(
        line for line in stdout.splitlines() if line.startswith("  demo_R_18_FPN ")
    ).split()[3:6]


def last_state(folder) -> dict:
    return torch.load(folder / (folder / "last_checkpoint").read_text().strip(), weights_only=True)


def assert_same(one, other, where=""):
    """Assert that two checkpoints hold the same tensors and numbers, to the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    else:
        assert one == other, where


def test_benchmark__stopped_killed_and_gone_on_with_is_the_uninterrupted_matrix(
    whole, matrix_words, tmp_path
):
    for attempt in range(3):
        output = tmp_path / f"runs{attempt}"
        first, second = (
            output / "demo_R_18_FPN" / name / "seed0" for name in ("random", "supervised")
        )
        process = start(output, *matrix_words)
        wait_for_checkpoint(process, first)
        process.terminate()
        said, _ = process.communicate(timeout=200)
        assert (
            process.returncode == 143
            and f"Stopped; every run has saved. Go on with: moco-transfer benchmark --output {output}"
            in said
        )
        assert not second.exists(), "a run was started after SIGTERM"
        was_stopped = not (first / "results.json").exists()

        process = start(output)
        wait_for_checkpoint(process, second)
        os.kill(process.pid, signal.SIGKILL)
        said, _ = process.communicate()  # its run holds the pipe until it has ended
        assert counts(said) == (["0", "1", "1"] if was_stopped else ["1", "0", "1"])
        with output_lock(output):
            was_killed = not (second / "results.json").exists()
        if was_stopped and was_killed:
            break
    else:
        pytest.fail("three times the runs had ended before they could be interrupted")
    before = files_of(first)
    assert "results.json" in before and "resumed from" in (first / "log.txt").read_text()

    done = moco_transfer("benchmark", "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert counts(done.stdout) == ["1", "1", "0"]
    assert files_of(first) == before, "a complete run was run again"
    assert "resumed from" in (second / "log.txt").read_text()
    for folder in (first, second):
        uninterrupted = whole / folder.relative_to(output)
        states = [last_state(path) for path in (uninterrupted, folder)]
        assert states[0]["iteration"] == 6
        for key in ("model", "optimizer", "iteration"):
            assert_same(states[0][key], states[1][key], f"{folder.parent.name}.{key}")
        # Means of the last log period, of which a resumed run has seen only its own part: alike,
        # not equal.
        losses = [
            json.loads((path / "results.json").read_text())["last_losses"]
            for path in (uninterrupted, folder)
        ]
        assert losses[0].keys() == losses[1].keys()
        assert sum(losses[1].values()) == pytest.approx(sum(losses[0].values()), rel=0.2)
    assert metrics(output) == metrics(whole)
    rows = [
        [line for line in (path / "table.md").read_text().splitlines() if line.startswith("|")]
        for path in (whole, output)
    ]
    assert rows[0] == rows[1]


def test_benchmark__child_of_a_killed_parent_saves_ends_and_holds_the_lock_until_then(tmp_path):
    # The child takes two seconds to "save" when it is told to end.
    (tmp_path / "child.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(143)))\n"
        "print('ready', flush=True)\ntime.sleep(600)\n"
    )
    program = (
        "import sys, time; from pathlib import Path; from moco_transfer.benchmark.launch import"
        " LocalLauncher, output_lock\noutput = Path(sys.argv[1])\nwith output_lock(output,"
        " wait_sec=0.1) as lock:\n    job = LocalLauncher(lanes=1,"
        " lock=lock).start([sys.executable, str(output / 'child.py')], output / 'run', 0)\n   "
        " print(job._process.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    until = time.monotonic() + 60
    while "ready" not in (tmp_path / "run" / "console.txt").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.wait()
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        until = time.monotonic() + 30
        while Path(f"/proc/{child}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def test_output_lock__is_held_by_one(tmp_path):
    with (
        output_lock(tmp_path),
        pytest.raises(InputError, match="is in use by another benchmark"),
        output_lock(tmp_path, wait_sec=0),
    ):
        pass


def test_benchmark__goes_on_past_a_failed_run_and_names_it(whole, tmp_path):
    output = copy(whole, tmp_path / "runs")
    broken, lost = (output / "demo_R_18_FPN" / name / "seed0" for name in ("random", "supervised"))
    (broken / "results.json").unlink()
    for file in broken.glob("checkpoint_*.pth"):
        file.write_bytes(b"damaged")
    (lost / "results.json").write_text('{"schema": 1, "task": ')  # cut short: evaluated again
    done = moco_transfer("benchmark", "--output", output)
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")][-1]
    assert (
        str(broken) in failed
        and "checkpoint_0000006.pth" in failed
        and str(broken / "console.txt") in failed
    )
    assert (
        metrics(output)["demo_R_18_FPN/supervised/seed0"]
        == metrics(whole)["demo_R_18_FPN/supervised/seed0"]
    )
    assert "| supervised |" in (output / "table.md").read_text()


def test_benchmark__refuses_to_mix_runs_of_other_weights_or_configs(whole, matrix_words, tmp_path):
    output = copy(whole, tmp_path / "runs")
    file = output / "demo_R_18_FPN" / "supervised" / "seed0" / "results.json"
    record = json.loads(file.read_text())
    record["weights"]["sha256"] = "0" * 64
    file.write_text(json.dumps(record))
    done = moco_transfer("benchmark", "--output", output, *matrix_words, "SOLVER.MAX_ITER", "8")
    assert done.returncode == 2
    assert (
        done.stderr.count("holds another run (config hash") == 2
        and f"sha256 of the weights '{'0' * 64}', now" in done.stderr
    )


def test_benchmark__checks_everything_before_the_first_run(matrix_words, tmp_path):
    words = [*matrix_words]
    words[words.index("--tasks") + 1 : words.index("--tasks") + 2] = [
        "demo_R_18_FPN",
        "pascal_voc_R_50_C4_24k",
        "no_such_config",
    ]
    words[words.index("--init") : words.index("--init")] = ["--init", "gone=nowhere.pkl"]
    done = moco_transfer("benchmark", "--output", tmp_path / "runs", *words)
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    said = done.stderr
    assert "Nothing was started" in said
    assert "init gone: " in said and "nowhere.pkl" in said
    assert "task no_such_config: " in said
    assert (
        "task pascal_voc_R_50_C4_24k: " in said and "SOLVER.REFERENCE_WORLD_SIZE" in said
    )  # a batch that it does not scale from


def test_benchmark__holds_weights_against_each_task(matrix_words, tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34-00000000.pth")
    convert_checkpoint(tmp_path / "resnet34-00000000.pth", tmp_path / "deeper.pkl")
    words = [*matrix_words]
    words[words.index("--seeds") - 1] = f"deeper={tmp_path / 'deeper.pkl'}"
    done = moco_transfer(
        "benchmark", "--output", tmp_path / "runs", *words, "SOLVER.BASE_LR", "1.0"
    )
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert "task demo_R_18_FPN from deeper: " in done.stderr and "deeper.pkl" in done.stderr
    assert "task demo_R_18_FPN from random, deeper: SOLVER.IMS_PER_BATCH 2" in done.stderr


def test_benchmark__label_fraction(matrix_words, tmp_path):
    output, words = tmp_path / "runs", [*matrix_words, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "1"]
    words[words.index("--no-timing") : words.index("--no-timing")] = ["--label-fraction", "0.5"]
    done = moco_transfer("benchmark", "--output", output, "--dry-run", *words)
    file = output / "subsets" / "demo_R_18_FPN_50pct.json"
    assert done.returncode == 0 and f"--label-subset {file}" in done.stdout and not output.exists()
    done = moco_transfer("benchmark", "--output", output, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    subset = json.loads(file.read_text())
    assert len(subset["images"]["scenes_train"]) == 3  # of six
    records = [json.loads(path.read_text()) for path in sorted(output.rglob("results.json"))]
    assert [(r["init"], r["task"]) for r in records] == [
        (name, "demo_R_18_FPN_50pct") for name in ("random", "supervised")
    ]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert [r["dataset"]["label_subset"] for r in records] == [
        {"fraction": 0.5, "seed": 0, "images": 3, "sha256": sha256}
    ] * 2
    assert "50 % of its labelled images: 3" in (output / "table.md").read_text()
    for name in ("random", "supervised"):
        assert (
            "training on 3 images"
            in (output / f"demo_R_18_FPN_50pct/{name}/seed0/log.txt").read_text()
        )

    # Going on leaves the file as it is; a subset of other images is other runs.
    before = (file.stat().st_mtime_ns, file.stat().st_ino)
    assert moco_transfer("benchmark", "--output", output, "--dry-run").returncode == 0
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    subset["seed"] = 1
    file.write_text(json.dumps(subset))
    done = moco_transfer("benchmark", "--output", output)
    assert (
        done.returncode == 2
        and done.stderr.count(f"holds another run (sha256 of the label subset '{sha256}', now") == 2
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "1 of the 3 images that .* names do not exist"),
        (
            lambda file: file.write_bytes(b""),
            (
                "data set holes_test.: 1 of its 3 images are empty or cannot be read; the first"
                " is .*{name}"
            ),
        ),
        (
            lambda file: (file.unlink(), file.symlink_to("nowhere")),
            "data set holes_test.: 1 of its 3 images are empty or cannot be read",
        ),
    ],
    ids=["missing", "empty", "broken link"],
)
def test_prepare__looks_at_every_image(scenes, tmp_path, damage, said, request):
    root = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    last = (root / "ImageSets" / "Main" / "test.txt").read_text().split()[-1]
    image = next((root / "JPEGImages").glob(f"{last}.*"))
    damage(image)
    number = request.node.callspec.indices["damage"]
    data = [
        f"holes_{split}{number}=voc:{root}:{split}:{root / 'classes.txt'}"
        for split in ("train", "test")
    ]
    names = ["DATASETS.TRAIN", f"holes_train{number}", "DATASETS.TEST", f"holes_test{number}"]
    task = Task(
        "demo_R_18_FPN",
        "demo_R_18_FPN",
        tuple(data),
        (*names, *tiny({k: v for k, v in TINY_DETECTION.items() if k != "SEED"})),
    )
    matrix = build_matrix(
        tmp_path / "runs", tasks=[task], inits=[Initialisation("random")], engine="torchvision"
    )
    with pytest.raises(InputError, match=said.format(name=image.name)):
        prepare(matrix, world_size=1)
    assert not (tmp_path / "runs").exists()


def test_finish__names_the_failures_when_no_table_can_be_made(tmp_path, capsys):
    matrix = build_matrix(tmp_path, tasks=[Task("t", "c")], inits=[Initialisation("random")])
    (cell,) = matrix.cells()
    cell.folder.mkdir(parents=True)
    (cell.folder / "results.json").write_text("{")
    (tmp_path / "table.md").write_text("a table of yesterday")
    assert benchmark._finish(matrix, [Failure(cell, 1, "it broke")]) == 1
    said = capsys.readouterr()
    assert (
        f"FAILED {cell.folder}: exit status 1: it broke" in said.out
        and "1 run(s) failed" in said.out
    )
    assert "yesterday" not in said.out and "wrote" not in said.out and "No readable run" in said.err
    assert (
        tmp_path / "table.md"
    ).read_text() == "a table of yesterday" and "are left as they are" in said.out
    # Nor is it a success when no run failed just now.
    assert benchmark._finish(matrix, []) == 1


def test_finish__takes_the_baseline_where_it_has_a_run(tmp_path, capsys, results):
    rows = [Initialisation("random"), Initialisation("sup", "s.pkl")]
    matrix = build_matrix(
        tmp_path, tasks=[Task("pascal_voc_R_18_FPN", "c")], inits=rows, baseline="sup"
    )
    for cell in matrix.cells():
        cell.folder.mkdir(parents=True)
        (cell.folder / "results.json").write_text(
            json.dumps(results(cell.init.name, bbox={"AP": 10.0 + len(cell.init.name)}))
        )
    benchmark._finish(matrix, [])
    assert "| random | 16.0 | – | – | +3.0 |" in (tmp_path / "table.md").read_text()
    assert "difference of the means to the sup row" in (tmp_path / "report.html").read_text()
    shutil.rmtree(matrix.cells()[1].folder)
    assert (
        benchmark._finish(matrix, []) == 0
        and "| random | 16.0 |" in (tmp_path / "table.md").read_text()
    )


def test_benchmark__dry_run_prints_commands_that_are_the_runs(matrix_words, tmp_path):
    done = moco_transfer(
        "benchmark",
        "--output",
        tmp_path / "runs",
        "--dry-run",
        "--launcher",
        "torchrun",
        "--nproc-per-node",
        "2",
        *matrix_words,
    )
    assert done.returncode == 0 and not (tmp_path / "runs").exists()
    commands = [line for line in done.stdout.splitlines() if "moco_transfer.cli.main train" in line]
    assert len(commands) == 2 and all(
        "torch.distributed.run --standalone --nproc_per_node 2" in line for line in commands
    )


def test_benchmark__slurm_without_slurm(matrix_words, tmp_path):
    done = moco_transfer(
        "benchmark",
        "--output",
        tmp_path / "runs",
        "--launcher",
        "slurm",
        "--slurm",
        "partition=gpu",
        *matrix_words,
    )
    assert done.returncode == 2 and "--launcher slurm" in done.stderr


def test_slurm_launcher__runs_through_submitit_and_finds_its_jobs_again(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    from moco_transfer.benchmark.launch import SlurmLauncher

    launcher = SlurmLauncher(tmp_path / "slurm", {"timeout_min": "5"}, cluster="local")
    command = [sys.executable, "-c", "print('ran'); raise SystemExit(3)"]
    job = launcher.start(command, tmp_path / "run", 0)
    until = time.monotonic() + 60
    while (status := job.poll()) is None and time.monotonic() < until:
        time.sleep(0.1)
    assert status == 3 and (tmp_path / "run" / "console.txt").read_text() == "ran\n"
    known = json.loads((tmp_path / "slurm" / "jobs.json").read_text())
    assert known == {str(tmp_path / "run"): job._job.job_id}
