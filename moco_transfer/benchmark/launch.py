"""Where the runs of a matrix are started: on this machine, one process each or by torchrun over its
GPUs, or through Slurm.

A launcher has ``lanes``, how many runs it takes at a time, and ``start(command, folder, lane)``,
which returns a job with ``poll()``: the exit status, or None while it runs. The jobs of a launcher
with ``outlives_benchmark`` stay when the benchmark ends; those of others are child processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text, make_folder
from ..runtime.text import parse_json
from .cell_states import LOCK

CONSOLE = "console.txt"  # what a run printed, in its folder
SAVES_WITHIN_SEC = 120
_SETTINGS = "launcher.json"
_PR_SET_PDEATHSIG = 1
_MANY = 10**6  # Slurm decides how many jobs run at a time
_QUEUE_SEC = 5  # between two questions to Slurm's queue
_RESULT_SEC = 20  # how late a file of another machine may appear here
_TIME_LIMITS = 1000  # how often a run may reach its time limit, save, and be queued again
# The parameters that submitit names itself; all others are Slurm's own.
_SUBMITITS = ("timeout_min", "nodes", "gpus_per_node", "cpus_per_task", "mem_gb", "name")


@dataclass(frozen=True)
class LaunchSettings:
    """How the runs of a matrix are started; saved next to matrix.yaml, so that a resumed benchmark
    uses the same launcher.
    """

    launcher: str = "local"  # or torchrun, or slurm
    jobs: int | None = None  # local: runs at a time; None means one per GPU
    nproc_per_node: int | None = None  # torchrun: processes of a run
    slurm: tuple[str, ...] = ()  # slurm: KEY=VALUE words

    def save(self, output: Path) -> None:
        """Write launcher.json into the output folder."""
        atomic_write_text(output / _SETTINGS, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, output: Path) -> LaunchSettings | None:
        """Return what :meth:`save` wrote, or None where nothing was."""
        file = output / _SETTINGS
        try:
            data = parse_json(file.read_text(encoding="utf-8"))
            return cls(**(data | {"slurm": tuple(data["slurm"])}))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise InputError(f"{file} is damaged ({error}). Give --launcher again.") from error

    def num_processes(self) -> int:
        """Return the number of processes of a run."""
        if self.launcher == "slurm":
            return self._slurm_number("gpus_per_node")
        return (self.nproc_per_node or 1) if self.launcher == "torchrun" else 1

    def lanes(self, num_gpus: int) -> int:
        """Return how many runs this machine runs at a time."""
        return self.jobs or max(1, num_gpus) if self.launcher == "local" else 1

    def make(self, output: Path, *, num_gpus: int, lock: int | None = None) -> Any:
        """Return the launcher, for a machine with ``num_gpus``; every local run holds the file
        descriptor ``lock`` open.
        """
        if self.launcher == "slurm":
            if self._slurm_number("nodes") != 1:
                raise InputError("--slurm nodes: a run uses one node; give it more gpus_per_node.")
            return SlurmLauncher(output / "slurm", self._slurm())
        if self.launcher == "torchrun":
            return LocalLauncher(1, lock=lock)
        several = (self.jobs or num_gpus) > 1
        return LocalLauncher(self.lanes(num_gpus), num_gpus=num_gpus * several, lock=lock)

    def _slurm(self) -> dict[str, str]:
        for word in self.slurm:
            if "=" not in word:
                raise InputError(f"--slurm {word!r}: expected KEY=VALUE, such as partition=gpu.")
        return dict(word.split("=", 1) for word in self.slurm)

    def _slurm_number(self, key: str) -> int:
        text = self._slurm().get(key, "1")
        if not text.isdecimal() or text == "0":
            raise InputError(f"--slurm {key}={text}: expected a whole number of at least 1.")
        return int(text)


def run_environment(*, lanes: int, lane: int, num_gpus: int) -> dict[str, str]:
    """Return the environment of one of ``lanes`` runs: its part of the cores, and its GPU."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // lanes)))
    if num_gpus:
        mask = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = mask.split(",") if mask else list(map(str, range(num_gpus)))
        environment["CUDA_VISIBLE_DEVICES"] = names[:num_gpus][lane % num_gpus].strip()
    return environment


class LocalLauncher:
    """Runs as child processes, ``lanes`` at a time. Each sees one of ``num_gpus`` (0 leaves
    CUDA_VISIBLE_DEVICES alone) and holds ``lock`` open, so that it lasts as long as the last run.
    """

    outlives_benchmark = False

    def __init__(self, lanes: int, *, num_gpus: int = 0, lock: int | None = None) -> None:
        self.lanes, self.num_gpus, self.lock = lanes, num_gpus, lock

    def start(self, command: Sequence[str], folder: Path, lane: int) -> subprocess.Popen[bytes]:
        """Start a run; what it prints is added to ``console.txt`` in its folder."""
        make_folder(folder)
        with open(folder / CONSOLE, "ab") as console:
            return subprocess.Popen(
                command,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=run_environment(lanes=self.lanes, lane=lane, num_gpus=self.num_gpus),
                pass_fds=() if self.lock is None else (self.lock,),
                start_new_session=True,  # Ctrl-C must not reach it: it is told to save and end
                preexec_fn=_end_with_parent,
            )


def _end_with_parent() -> None:
    # SIGTERM when the benchmark dies, also of SIGKILL: an unwatched run would meet its successor.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class TrainJob:
    """A Slurm job: it runs the command, and is queued again when preempted or out of time."""

    def __init__(self, command: Sequence[str], folder: str) -> None:
        self.command, self.folder = list(command), folder

    def __call__(self) -> int:
        """Run the command and return its exit status."""
        make_folder(self.folder)
        with open(Path(self.folder) / CONSOLE, "ab") as console:
            self._process = subprocess.Popen(
                self.command, stdout=console, stderr=subprocess.STDOUT, preexec_fn=_ignore_warning
            )
            return self._process.wait()

    def checkpoint(self) -> Any:
        """Save, and be queued again; submitit calls this on its warning signal."""
        import submitit

        self._process.terminate()
        # This runs in a signal handler, inside wait() above, which holds Popen's lock.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(TrainJob(self.command, self.folder))


class SlurmLauncher:
    """Runs as Slurm jobs through submitit, which stay in the queue when the benchmark ends.

    ``folder`` is for submitit's files, and for ``jobs.json``, by which a second call finds its
    jobs. ``parameters`` are submitit's (timeout_min, ...) or Slurm's (partition, ...). ``cluster``
    is submitit's executor.

    Raises:
        InputError: If submitit is not installed, Slurm is not there, or a parameter is not known.
    """

    outlives_benchmark = True
    lanes = _MANY

    def __init__(self, folder: Path, parameters: dict[str, str], *, cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError as error:
            install = "pip install 'moco-transfer[slurm]'"
            raise InputError(f"--launcher slurm needs submitit. Install it: {install}") from error
        self._index = folder / "jobs.json"
        self._queue = _Queue() if cluster == "slurm" else None
        values = {
            key if key in _SUBMITITS or key.startswith("slurm_") else f"slurm_{key}": (
                int(value) if value.isdecimal() else value
            )
            for key, value in parameters.items()
        }
        try:
            more = {"slurm_max_num_timeout": _TIME_LIMITS} if cluster == "slurm" else {}
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **more)
            self._executor.update_parameters(**values)
        except (RuntimeError, NameError, KeyError, TypeError, ValueError) as error:
            hint = "Is sbatch on this machine, and are the --slurm parameters Slurm's?"
            raise InputError(f"--launcher slurm: {error}. {hint}") from error

    def start(self, command: Sequence[str], folder: Path, lane: int) -> SlurmJob:
        """Queue a run, or take up the job that an earlier call queued for it."""
        known = json.loads(self._index.read_text(encoding="utf-8")) if self._index.exists() else {}
        if str(folder) in known:
            job = self._executor.job_class(self._executor.folder, known[str(folder)])
            if (earlier := SlurmJob(job, folder, self._queue)).is_queued():
                return earlier
        job = self._executor.submit(TrainJob(command, str(folder)))
        if self._queue:
            self._queue.forget()
        known[str(folder)] = job.job_id
        atomic_write_text(self._index, json.dumps(known, indent=1) + "\n")
        return SlurmJob(job, folder, self._queue)


def _ignore_warning() -> None:
    # Slurm sends it to all processes of a job, and it would end this one before it has saved.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


class _Queue:
    """A user's jobs in Slurm's queue. submitit asks sacct, which needs Slurm's accounting."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Ask again the next time."""
        self._asked = float("-inf")

    def has(self, job_id: str) -> bool:
        """Whether a job waits or runs, as of the last few seconds; an unreachable Slurm is taken
        to have it still.
        """
        if time.monotonic() - self._asked > _QUEUE_SEC:
            self._asked = time.monotonic()
            command = ["squeue", "--noheader", "--format=%A", f"--user={os.getuid()}"]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode:
                self._ids.add(job_id)
            else:
                self._ids = set(answer.stdout.split())
        return job_id in self._ids


class SlurmJob:
    """A queued run; it stays in the queue when the benchmark ends.

    ``queue`` is None for submitit's other executors, which know the state of a job themselves.
    """

    def __init__(self, job: Any, folder: Path, queue: _Queue | None) -> None:
        self.job, self._folder, self._queue = job, folder, queue
        self._gone_since = 0.0

    def is_queued(self) -> bool:
        """Whether it waits or runs."""
        if self.job.paths.result_pickle.exists():
            return False
        return self._queue.has(self.job.job_id) if self._queue else not self.job.done()

    def poll(self) -> int | None:
        """Return the exit status, None while it is queued or runs."""
        if self.is_queued():
            self._gone_since = 0.0
            return None
        if self._queue and not self.job.paths.result_pickle.exists():
            self._gone_since = self._gone_since or time.monotonic()
            if time.monotonic() - self._gone_since < _RESULT_SEC:
                return None
            self._folder.mkdir(parents=True, exist_ok=True)  # cancelled before it began
            with open(self._folder / CONSOLE, "a", encoding="utf-8") as console:
                print(
                    f"Slurm's job {self.job.job_id} ended without a result: it was cancelled or"
                    f" killed, see {self.job.paths.stderr}.",
                    file=console,
                )
            return 1
        return 1 if self.job.exception() is not None else int(self.job.result())


@contextlib.contextmanager
def output_lock(output: Path, *, wait_sec: float = SAVES_WITHIN_SEC) -> Iterator[int]:
    """Hold the output folder for one benchmark and the runs that it started; yield the lock's file
    descriptor. InputError if it is still held after ``wait_sec``, e.g. by runs of a killed one.
    """
    make_folder(output)
    until = time.monotonic() + wait_sec
    with open(output / LOCK, "a", encoding="utf-8") as file:
        for attempt in itertools.count():
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > until:
                who = "another benchmark or a run of one"
                raise InputError(f"{output} is in use by {who}. Wait, or choose another --output.")
            if attempt == 0:
                print(f"{output} is in use; waiting up to {wait_sec:.0f} s.", flush=True)
            time.sleep(0.2)
        yield file.fileno()
