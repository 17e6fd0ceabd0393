"""A matrix on a real Slurm of one node, without accounting, started for the test.

Seen red under: a run that ends by Slurm's warning, SIGUSR2. A job that waits with Popen.wait in the
handler of that warning hung until its time limit; where submitit asks sacct, a cancelled job never
ended.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import slurm_here
from cli.conftest import environment
from test_interruption import assert_same, last_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_here.why_not()), reason=slurm_here.why_not()),
]
ITERATIONS = 150
LIMIT_SEC = 900


@pytest.fixture(scope="module")
def cluster():
    """The environment of a user of the cluster."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # a socket's path has at most 107 characters
    with slurm_here.slurm(folder) as found:
        yield environment() | found
    shutil.rmtree(folder)


def wait_for(happened, what: str, process: subprocess.Popen | None = None) -> None:
    until = time.monotonic() + LIMIT_SEC
    while not happened():
        assert time.monotonic() < until, what
        assert process is None or process.poll() is None, what
        time.sleep(0.2)


def test_slurm__killed_cancelled_and_out_of_time_is_the_uninterrupted_matrix(
    cluster, matrix_words, benchmark, tmp_path
):
    output = tmp_path / "runs"
    words = [*matrix_words, "SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.STEPS", "(100,)"]
    words += ["SOLVER.CHECKPOINT_PERIOD", "1000", "SOLVER.BASE_LR", "0.0087"]
    words[1:2] = ["demo_R_18_FPN", "own_R_18_FPN_small"]
    queue = ["--launcher", "slurm", "--slurm", "timeout_min=15"]
    program = [sys.executable, "-m", "moco_transfer", "benchmark", "--output", str(output)]
    folders = [
        output / task / init / "seed0"
        for task in ("demo_R_18_FPN", "own_R_18_FPN_small")
        for init in ("random", "supervised")
    ]

    def jobs() -> dict[str, str]:
        file = output / "slurm" / "jobs.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def states() -> dict[str, str]:
        command = ["squeue", "--noheader", "--format=%A %T"]
        answer = subprocess.run(command, env=cluster, capture_output=True, text=True, check=True)
        return dict(line.split() for line in answer.stdout.splitlines())

    def trains(folder: Path) -> bool:
        file = folder / "metrics.json"
        return file.exists() and file.stat().st_size > 0

    def cancel(folder: Path) -> None:
        subprocess.run(["scancel", jobs()[str(folder)]], env=cluster, check=True)

    # The submitting process is killed while jobs run and wait.
    with (tmp_path / "first.txt").open("w") as said:
        first = subprocess.Popen([*program, *queue, *words], env=cluster, stdout=said, stderr=said)
    wait_for(lambda: len(jobs()) == 4, "four jobs", first)
    wait_for(lambda: trains(folders[0]), "a run", first)
    # As Slurm warns of a time limit: the run saves, and its job waits again, at most two minutes.
    job = jobs()[str(folders[0])]
    subprocess.run(["scancel", "--signal=USR2", job], env=cluster, check=True)
    wait_for(lambda: states().get(job) == "PENDING", "a job that is queued again", first)
    assert (folders[0] / "last_checkpoint").exists()
    first.kill()
    first.wait()
    before = jobs()
    cancel(folders[3])
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=cluster, check=True)

    # Another takes its place: what is queued stays, what was cancelled is queued again.
    with (tmp_path / "said.txt").open("w") as said:
        second = subprocess.Popen(program, env=cluster, stdout=said, stderr=said)
        wait_for(lambda: jobs()[str(folders[3])] != before[str(folders[3])], "a new job", second)
        wait_for(lambda: trains(folders[2]), "the third run", second)
        cancel(folders[2])
        assert second.wait(LIMIT_SEC) == 1
    after, said = jobs(), (tmp_path / "said.txt").read_text()
    assert [after[str(folder)] == before[str(folder)] for folder in folders] == [True] * 3 + [False]
    assert f"FAILED {folders[2]}" in said and "accounting" not in said and "sacct" not in said
    assert [(folder / "results.json").exists() for folder in folders] == [True, True, False, True]

    done = subprocess.run(program, env=cluster, capture_output=True, text=True, timeout=LIMIT_SEC)
    assert done.returncode == 0 and (output / "table.md").exists(), done.stdout[-3000:]
    assert all(
        (folder / "log.txt").read_text().count("resumed from")
        for folder in (folders[0], folders[2])
    )
    assert not states()

    assert benchmark("--output", tmp_path / "here", *words) == 0
    for folder in folders:
        here = tmp_path / "here" / folder.relative_to(output)
        for key in ("model", "optimizer", "iteration"):
            assert_same(last_state(folder)[key], last_state(here)[key], f"{folder}.{key}")
        one, other = (json.loads((x / "results.json").read_text()) for x in (folder, here))
        assert one["metrics"] == other["metrics"]
