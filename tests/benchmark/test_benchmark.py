"""A matrix as a user runs it: whole, killed, damaged, with a run that fails, and checked before it starts.

Seen red under: complete runs started again; the children left alive by SIGKILL; the first failure ending the matrix; weights not compared
with those of a complete run; the check of the data left out.
"""

from __future__ import annotations

import fcntl
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
from cli.conftest import environment, moco_transfer

from moco_transfer.benchmark.launch import output_lock
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
    return {str(file.parent.relative_to(output)): json.loads(file.read_text())["metrics"] for file in files}


def stamps(output: Path) -> dict[str, int]:
    return {str(file.relative_to(output)): file.stat().st_mtime_ns for file in output.rglob("results.json")}


def copy(output: Path, target: Path) -> Path:
    shutil.copytree(output, target)
    return target


def test_benchmark__makes_every_run_and_the_table(whole):
    assert set(metrics(whole)) == {"demo_R_18_FPN/random/seed0", "demo_R_18_FPN/supervised/seed0"}
    page = (whole / "report.html").read_text()
    assert "Training loss over iterations" in page and "Detections of each initialisation beside the ground truth" in page
    assert 'src="data:image/svg+xml;base64,' in page, "the sheet that was drawn is not in the page"
    table = (whole / "table.md").read_text()
    assert "| random |" in table and "| supervised |" in table
    records = [json.loads(file.read_text()) for file in sorted(whole.rglob("results.json"))]
    assert [(r["init"], r["seed"], r["task"]) for r in records] == [("random", 0, "demo_R_18_FPN"), ("supervised", 0, "demo_R_18_FPN")]


def test_benchmark__output_alone_goes_on_and_repeats_nothing(whole):
    before = stamps(whole)
    done = moco_transfer("benchmark", "--output", whole)
    assert done.returncode == 0 and stamps(whole) == before
    assert "2 runs" in done.stdout and "| supervised |" in done.stdout


def test_benchmark__killed_and_started_again_gives_the_same_table(whole, matrix_words, tmp_path):
    output = tmp_path / "runs"
    command = [sys.executable, "-m", "moco_transfer.cli.main", "benchmark", "--output", str(output), *matrix_words]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = output / "demo_R_18_FPN" / "supervised" / "seed0"
    until = time.monotonic() + 240
    while not (second / "last_checkpoint").exists() and not (second / "results.json").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    was_finished = (second / "results.json").exists()
    before = stamps(output)
    assert len(before) >= 1
    done = moco_transfer("benchmark", "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    after = stamps(output)
    assert {name: after[name] for name in before} == before, "a complete run was run again"
    assert metrics(output) == metrics(whole)
    rows = [[line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")] for folder in (whole, output)]
    assert rows[0] == rows[1]
    assert was_finished or "interrupted" in done.stdout


def test_benchmark__child_of_a_killed_parent_saves_ends_and_holds_the_lock_until_then(tmp_path):
    # The child takes two seconds to "save" when it is told to end.
    (tmp_path / "child.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(143)))\n"
        "print('ready', flush=True)\ntime.sleep(600)\n"
    )
    program = (
        "import sys, time; from pathlib import Path; from moco_transfer.benchmark.launch import LocalLauncher, output_lock\n"
        "output = Path(sys.argv[1])\n"
        "with output_lock(output, wait_sec=0.1) as lock:\n"
        "    job = LocalLauncher(lanes=1, lock=lock).start([sys.executable, str(output / 'child.py')], output / 'run', 0)\n"
        "    print(job._process.pid, flush=True); time.sleep(600)"
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
    with output_lock(tmp_path), pytest.raises(InputError, match="is in use by another benchmark"), output_lock(tmp_path, wait_sec=0):
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
    assert str(broken) in failed and "checkpoint_0000006.pth" in failed and str(broken / "console.txt") in failed
    assert metrics(output)["demo_R_18_FPN/supervised/seed0"] == metrics(whole)["demo_R_18_FPN/supervised/seed0"]
    assert "| supervised |" in (output / "table.md").read_text()


def test_benchmark__refuses_to_mix_runs_of_other_weights_or_configs(whole, matrix_words, tmp_path):
    output = copy(whole, tmp_path / "runs")
    file = output / "demo_R_18_FPN" / "supervised" / "seed0" / "results.json"
    record = json.loads(file.read_text())
    record["weights"]["sha256"] = "0" * 64
    file.write_text(json.dumps(record))
    done = moco_transfer("benchmark", "--output", output, *matrix_words, "SOLVER.MAX_ITER", "8")
    assert done.returncode == 2
    assert done.stderr.count("holds another run (config hash") == 2 and f"sha256 of the weights '{'0' * 64}', now" in done.stderr


def test_benchmark__checks_everything_before_the_first_run(matrix_words, tmp_path):
    words = [*matrix_words]
    words[words.index("--tasks") + 1 : words.index("--tasks") + 2] = ["demo_R_18_FPN", "pascal_voc_R_50_C4_24k", "no_such_config"]
    words[words.index("--init") : words.index("--init")] = ["--init", "gone=nowhere.pkl"]
    done = moco_transfer("benchmark", "--output", tmp_path / "runs", *words)
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    said = done.stderr
    assert "Nothing was started" in said
    assert "init gone: " in said and "nowhere.pkl" in said
    assert "task no_such_config: " in said
    assert "task pascal_voc_R_50_C4_24k: " in said and "SOLVER.REFERENCE_WORLD_SIZE" in said  # a batch that it does not scale from


def test_benchmark__holds_weights_against_each_task(matrix_words, tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34-00000000.pth")
    convert_checkpoint(tmp_path / "resnet34-00000000.pth", tmp_path / "deeper.pkl")
    words = [*matrix_words]
    words[words.index("--seeds") - 1] = f"deeper={tmp_path / 'deeper.pkl'}"
    done = moco_transfer("benchmark", "--output", tmp_path / "runs", *words, "SOLVER.BASE_LR", "1.0")
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert "task demo_R_18_FPN from deeper: " in done.stderr and "deeper.pkl" in done.stderr
    assert "task demo_R_18_FPN from random, deeper: SOLVER.IMS_PER_BATCH 2" in done.stderr


def test_benchmark__dry_run_prints_commands_that_are_the_runs(matrix_words, tmp_path):
    done = moco_transfer("benchmark", "--output", tmp_path / "runs", "--dry-run", "--launcher", "torchrun", "--nproc-per-node", "2", *matrix_words)
    assert done.returncode == 0 and not (tmp_path / "runs").exists()
    commands = [line for line in done.stdout.splitlines() if "moco_transfer.cli.main train" in line]
    assert len(commands) == 2 and all("torch.distributed.run --standalone --nproc_per_node 2" in line for line in commands)


def test_benchmark__slurm_without_slurm(matrix_words, tmp_path):
    done = moco_transfer("benchmark", "--output", tmp_path / "runs", "--launcher", "slurm", "--slurm", "partition=gpu", *matrix_words)
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
