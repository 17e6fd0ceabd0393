"""Where the runs of a matrix are started: side by side on this machine, by torchrun over its GPUs,
or through Slurm.

A launcher has ``lanes``, how many runs it takes at a time, and ``start(command, folder, lane)``,
which returns a job. A job has ``poll()``, the exit status or None while it runs, ``ask_to_stop()``,
which tells it to save and end, and ``wait_until_stopped(until)``, which is False where that took
too long. ``goes_on_alone`` says that jobs outlive the benchmark, so that neither does anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text

CONSOLE = "console.txt"  # what a run printed, in its folder
SAVES_WITHIN_SEC = 120
LAUNCHERS = ("local", "torchrun", "slurm")
_SETTINGS = "launcher.json"
_PR_SET_PDEATHSIG = 1
_SHARED_BY_SUBMITIT = (
    "timeout_min",
    "nodes",
    "gpus_per_node",
    "cpus_per_task",
    "mem_gb",
    "name",
    "stderr_to_stdout",
)


@dataclass(frozen=True)
class LaunchSettings:
    """How the runs of a matrix are started, as the user asked for it; kept beside the matrix, so
    that going on is going on so.

    Attributes:
        launcher: ``local``, ``torchrun`` or ``slurm``.
        jobs: local: runs side by side; None means one per GPU.
        nproc_per_node: torchrun: processes of a run.
        slurm: slurm: KEY=VALUE words.
    """

    launcher: str = "local"
    jobs: int | None = None
    nproc_per_node: int | None = None
    slurm: tuple[str, ...] = ()

    def save(self, output: Path) -> None:
        """Write launcher.json into the output folder."""
        atomic_write_text(output / _SETTINGS, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, output: Path) -> LaunchSettings | None:
        """Return what :meth:`save` wrote, or None where nothing was.

        Raises:
            InputError: If the file holds something else.
        """
        file = output / _SETTINGS
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            settings = cls(**(data | {"slurm": tuple(data["slurm"])}))
            if settings.launcher not in LAUNCHERS or not all(
                isinstance(n, int | None) for n in (settings.jobs, settings.nproc_per_node)
            ):
                raise ValueError(f"{data!r} is no way to run")
            return settings
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise InputError(
                f"{file} is damaged ({error}). Say again how to run (--launcher ...); it is then"
                " written again."
            ) from error


def visible_gpus(count: int) -> list[str]:
    """Return the names, as CUDA_VISIBLE_DEVICES has them, of the first ``count`` GPUs that this
    process may use.
    """
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (
        [name.strip() for name in mask.split(",")]
        if mask
        else [str(index) for index in range(count)]
    )
    return names[:count]


def run_environment(*, lanes: int, lane: int, num_gpus: int) -> dict[str, str]:
    """Return the environment of a run that shares the machine: its part of the cores, and its GPU.

    Args:
        lanes: Runs side by side.
        lane: Which of them this is.
        num_gpus: GPUs that the runs take turns on; 0 leaves CUDA_VISIBLE_DEVICES alone.
    """
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // lanes)))
    gpus = visible_gpus(num_gpus)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[lane % len(gpus)]
    return environment


def train_command(arguments: Sequence[str], *, num_processes: int = 1) -> list[str]:
    """Return the command of a run.

    Args:
        arguments: The words after ``train``.
        num_processes: More than one puts torchrun in front.
    """
    module = ["moco_transfer.cli.main", "train", *arguments]
    if num_processes == 1:
        return [sys.executable, "-m", *module]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(num_processes),
        "-m",
        *module,
    ]


class LocalLauncher:
    """Runs as child processes.

    Args:
        lanes: Runs at a time, each with an equal share of the cores.
        num_gpus: GPUs that the runs take turns on, each seeing one; 0 leaves CUDA_VISIBLE_DEVICES
            alone.
        lock: A file descriptor that every run holds open, so that the lock on it lasts as long as
            the last of them.
    """

    goes_on_alone = False

    def __init__(self, *, lanes: int, num_gpus: int = 0, lock: int | None = None) -> None:
        self.lanes = lanes
        self.num_gpus = num_gpus
        self.lock = lock

    def start(self, command: Sequence[str], folder: Path, lane: int) -> LocalJob:
        """Start a run; what it prints is added to ``console.txt`` in its folder."""
        environment = run_environment(lanes=self.lanes, lane=lane, num_gpus=self.num_gpus)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / CONSOLE, "ab") as console:
            process = subprocess.Popen(
                command,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=() if self.lock is None else (self.lock,),
                start_new_session=True,  # Ctrl-C must not reach it: it is told to save and end
                preexec_fn=_end_with_parent,
            )
        return LocalJob(process)


class LocalJob:
    """A run that is a child process."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Tell it to save and end."""
        self._process.terminate()

    def wait_until_stopped(self, until: float) -> bool:
        """Wait until it has ended, kill it at ``until`` (of ``time.monotonic``), and return whether
        it ended by itself.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until - time.monotonic()))
            return True
        self._process.kill()
        self._process.wait()
        return False


def _end_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the benchmark dies, also of SIGKILL: a run that nobody
    watches would meet its successor.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class TrainJob:
    """What a Slurm job does: runs the command, and asks to be queued again when it is preempted or
    out of time.
    """

    def __init__(self, command: Sequence[str], folder: str) -> None:
        self.command = list(command)
        self.folder = folder

    def __call__(self) -> int:
        """Run the command and return its exit status."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with open(Path(self.folder) / CONSOLE, "ab") as console:
            self._process = subprocess.Popen(self.command, stdout=console, stderr=subprocess.STDOUT)
            return self._process.wait()

    def checkpoint(self):
        """Save, and be queued again; submitit calls this on its warning signal."""
        import submitit

        self._process.terminate()
        self._process.wait()
        return submitit.helpers.DelayedSubmission(TrainJob(self.command, self.folder))


class SlurmLauncher:
    """Runs as Slurm jobs through submitit, which stay in the queue when the benchmark ends.

    Args:
        folder: For submitit's own files, and for ``jobs.json``, which a second call finds its jobs
            by.
        parameters: submitit's names (timeout_min, gpus_per_node, ...); all others are Slurm's own
            (partition, account, ...).
        cluster: submitit's executor; ``slurm``, or ``local`` for a trial without Slurm.

    Raises:
        InputError: If submitit is not installed, Slurm is not there, or a parameter is not known.
    """

    goes_on_alone = True

    def __init__(self, folder: Path, parameters: dict[str, str], *, cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError as error:
            raise InputError(
                "--launcher slurm needs submitit. Install it with: pip install"
                " 'moco-transfer[slurm]'"
            ) from error
        self.lanes = 10**6  # Slurm knows better
        self._index = folder / "jobs.json"
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(
                **{
                    _parameter_name(k): int(v) if v.isdecimal() else v
                    for k, v in parameters.items()
                }
            )
        except (RuntimeError, NameError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"--launcher slurm: {error}. Is sbatch on this machine, and are the --slurm"
                " parameters Slurm's?"
            ) from error

    def start(self, command: Sequence[str], folder: Path, lane: int) -> SlurmJob:
        """Queue a run, or take up the job that an earlier call queued for it."""
        known = json.loads(self._index.read_text(encoding="utf-8")) if self._index.exists() else {}
        if str(folder) in known:
            job = self._executor.job_class(self._executor.folder, known[str(folder)])
            if not job.done(force_check=True):
                return SlurmJob(job)
        job = self._executor.submit(TrainJob(command, str(folder)))
        atomic_write_text(
            self._index, json.dumps(known | {str(folder): job.job_id}, indent=1) + "\n"
        )
        return SlurmJob(job)


def _parameter_name(key: str) -> str:
    return key if key in _SHARED_BY_SUBMITIT or key.startswith("slurm_") else f"slurm_{key}"


class SlurmJob:
    """A queued run."""

    def __init__(self, job) -> None:
        self._job = job

    def poll(self) -> int | None:
        """Return the exit status, None while it is queued or runs."""
        if not self._job.done():
            return None
        return 1 if self._job.exception() is not None else int(self._job.result())

    def ask_to_stop(self) -> None:
        """Leave it in the queue."""

    def wait_until_stopped(self, until: float) -> bool:
        """Do not wait for it."""
        return True


@contextlib.contextmanager
def output_lock(output: Path, *, wait_sec: float = SAVES_WITHIN_SEC) -> Iterator[int]:
    """Hold the output folder for one benchmark, and for the runs that it started; yield the lock's
    file descriptor.

    Raises:
        InputError: If another benchmark, or a run of one that was killed, still holds it after
            ``wait_sec`` seconds.
    """
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until, said = time.monotonic() + wait_sec, False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise InputError(
                        f"{output} is in use by another benchmark or a run of one. Wait for it, or"
                        " choose another --output."
                    ) from None
                if not said:
                    print(
                        f"{output} is in use; waiting up to {wait_sec:.0f} s for runs of an earlier"
                        " benchmark to save and end.",
                        flush=True,
                    )
                    said = True
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)
