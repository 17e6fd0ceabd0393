"""How long a run will take: a few iterations timed as the runs will run, in processes of their own.

As many processes as will work at the same time are started, each with a run's share of the cores
(and its GPU), so that they get in each other's way as the runs will. They hold no GPU memory
afterwards, as the benchmark itself would.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict

from .launch import run_environment
from .matrix import Initialisation, Matrix, Task, build_matrix

logger = logging.getLogger(__name__)

_READY, _GO = "ready", "go"
_ANSWER = "seconds "


def time_task(
    matrix: Matrix, task: Task, *, num_processes: int, lanes: int, runs: int, num_gpus: int
) -> tuple[float, float] | None:
    """Time a task of a matrix.

    Args:
        matrix: The matrix.
        task: One of its tasks.
        num_processes: Processes of a run; the batch is shared among them. What they tell each other
            is not timed.
        lanes: Runs among which the cores are shared.
        runs: How many of them there will be side by side.
        num_gpus: GPUs of this machine, one for each process in turn; 0 without.

    Returns:
        Seconds an iteration and seconds a test image of one process, each the mean over all
        processes; None when it cannot be timed, which is logged: the runs will say why in their own
        words.
    """
    words = {
        "task": asdict(task),
        "engine": matrix.engine,
        "datasets": matrix.datasets,
        "overrides": matrix.overrides,
        "world_size": num_processes,
    }
    command = [sys.executable, "-m", "moco_transfer.benchmark.timing"]
    return time_processes(
        command,
        json.dumps(words),
        copies=min(lanes, runs) * num_processes,
        lanes=lanes,
        num_gpus=num_gpus,
    )


def time_processes(
    command: Sequence[str], words: str, *, copies: int, lanes: int, num_gpus: int
) -> tuple[float, float] | None:
    """Start ``copies`` processes, let them begin together when all are ready, and return the mean
    of the pairs that they answer.

    Args:
        command: Of a process. It reads one line, writes ``ready``, reads a line, and writes
            ``seconds`` and two numbers.
        words: The first line.
        copies: How many.
        lanes: Runs among which the cores are shared.
        num_gpus: GPUs that the processes take turns on.
    """
    with tempfile.TemporaryFile("w+") as errors:
        processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors if copy == 0 else subprocess.DEVNULL,
                text=True,
                env=run_environment(lanes=lanes, lane=copy, num_gpus=num_gpus),
            )
            for copy in range(copies)
        ]
        try:
            pairs = _ask(processes, words)
        except (BrokenPipeError, EOFError):
            errors.seek(0)
            said = errors.read().strip().splitlines()
            logger.warning(
                "the hours cannot be estimated: %s",
                said[-1] if said else "a process that timed iterations ended early",
            )
            return None
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    first, second = (sum(numbers) / len(numbers) for numbers in zip(*pairs, strict=True))
    return first, second


def _ask(processes: Sequence[subprocess.Popen], words: str) -> list[tuple[float, ...]]:
    for line, awaited in ((words, _READY), (_GO, _ANSWER)):
        for process in processes:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        answers = [_line_that_starts_with(awaited, process.stdout) for process in processes]
    return [tuple(map(float, answer.removeprefix(_ANSWER).split())) for answer in answers]


def _line_that_starts_with(start: str, lines) -> str:
    for line in lines:  # libraries may print as well
        if line.startswith(start):
            return line.strip()
    raise EOFError(start)


def _answer() -> None:
    """Time the task that standard input describes; what :func:`time_processes` starts."""
    from ..finetune.datasets import Reads
    from .build import PreparedTask, measure_speed, plan_task

    words = json.loads(sys.stdin.readline())
    task = Task(
        **{
            key: tuple(value) if isinstance(value, list) else value
            for key, value in words["task"].items()
        }
    )
    rows = [Initialisation("random")]
    matrix = build_matrix(
        ".",
        tasks=[task],
        inits=rows,
        engine=words["engine"],
        datasets=words["datasets"],
        overrides=words["overrides"],
    )
    plan = plan_task(matrix, task, rows[0], words["world_size"], Reads(), force=True)
    prepared = PreparedTask({"random": plan})

    def wait_for_the_others() -> None:
        print(_READY, flush=True)
        sys.stdin.readline()

    seconds = measure_speed(prepared, world_size=words["world_size"], on_ready=wait_for_the_others)
    print(_ANSWER, *seconds, sep=" ", flush=True)


if __name__ == "__main__":
    _answer()
