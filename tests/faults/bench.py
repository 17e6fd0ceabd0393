"""The fault bench: ``python tests/faults/bench.py [--trials 50] [--only pretrain]``.

Each trial runs a verb, does it harm, runs it again with ``--resume`` and compares with the
uninterrupted run. The last line counts over all trials:

    lost         saved before the fault and not there, or not used, after it
    unequal      another result than the uninterrupted run's, or a traceback in place of a sentence
    left behind  temporary files and processes

Faults: SIGKILL and SIGTERM at random moments; a power cut (power.py); a disk that is full, over
quota, read-only or broken, or the end of the process, at every change of a file (disk.py); a data
worker killed; the clock set back; last_checkpoint and checkpoints cut or changed.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import functools
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY)]

CHECKPOINTS = ("pretrain", "train boxes", "train boxes, Detectron2", "linear")
COUNTS = ("trials", "lost", "unequal", "left behind")
# What an interrupted run may have more than the uninterrupted one.
MORE = re.compile(r".*(events\.out\.tfevents\..*|checkpoint_\w+\.pth|console\.txt)")


class Bench:
    """The jobs, what they compute uninterrupted, and the counts."""

    def __init__(self, work: Path, *, seed: int, only: list[str]) -> None:
        from faults.jobs import make_jobs

        self.out, self.log, self.dice = work / "out", work / "log.txt", random.Random(seed)
        self.counts: dict[str, Counter[str]] = {}
        self.notes: list[str] = []
        (work / "data").mkdir()
        jobs = make_jobs(work / "data", REPOSITORY, functools.partial(write_checkpoint, self))
        self.jobs = {job.name: job for job in jobs if job.name in only or not only}
        self.whole: dict[str, tuple[float, Any, set[str]]] = {}

    def uninterrupted(self, name: str) -> tuple[float, Any, set[str]]:
        """Return seconds, result and files of a job's uninterrupted run."""
        from faults.server import Run

        if name not in self.whole:
            job, modules = self.jobs[name], self.out.with_name("modules.txt")
            for before in (functools.partial(tell_modules, modules), None):
                self.clear(job)
                since = time.monotonic()
                run = Run(job.argv(self.out), self.log, before)
                if not run.wait() or run.status:
                    raise SystemExit(f"{name}: status {run.status}\n{self.log.read_text()}")
                for module in modules.read_text().split():  # so that no trial must do so
                    with contextlib.suppress(ImportError):
                        importlib.import_module(module)
            found = (time.monotonic() - since, job.result(self.out), files_below(self.out))
            self.whole[name] = found
        return self.whole[name]

    def clear(self, job: Any) -> None:
        """Remove what the last trial wrote."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.log.write_bytes(b"")
        job.prepare(self.out)

    @contextlib.contextmanager
    def trial(self, fault: str, name: str) -> Iterator[Callable[[str, str], None]]:
        """Count a trial; yields what notes a failure."""
        counts = self.counts.setdefault(f"{fault}: {name}", Counter())
        counts["trials"] += 1

        def note(kind: str, what: str) -> None:
            counts[kind] += 1
            self.notes.append(f"{kind}: {fault}: {name}: {what}")
            tail = self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""
            print(f"{self.notes[-1]}\n{tail}", flush=True)

        try:
            yield note
        except (AssertionError, OSError, ValueError, LookupError, RuntimeError) as error:
            note("lost", f"{type(error).__name__}: {error}")

    def resume_and_compare(
        self, name: str, note: Callable[[str, str], None], saved: Any = None, *, killed: bool
    ) -> None:
        """Run a job to its end, and note what of ``saved``, of the result or of tidiness is
        missing. Of a run that was ``killed`` the workers may complain.
        """
        from faults.server import Run

        job, (_, result, files) = self.jobs[name], self.uninterrupted(name)
        job.prepare(self.out)
        if not killed and "Traceback" in (self.log.read_text(errors="replace")):
            note("unequal", "a traceback in place of a sentence")
        run = Run(job.argv(self.out, resume=True), self.log)
        if not run.wait():
            run.end(signal.SIGKILL)
            note("unequal", "the resumed run hung")
            return
        if run.status:
            note("unequal", f"the resumed run ended with status {run.status}")
            return
        found = job.result(self.out)
        if found != result:
            note("unequal", ", ".join(k for k in result if found.get(k) != result[k]) or "more")
        if saved is not None and (now := job.saved(self.out)) is not None:
            for key, value in saved.items():
                if not still_there(value, now.get(key)):
                    note("lost", f"{key}: {value!r:.200} is {now.get(key)!r:.200}")
        left = {f for f in files_below(self.out) - files if not MORE.fullmatch(f)}
        if left or (orphans := run.orphans()):
            note("left behind", f"{sorted(left) or orphans}")

    def table(self) -> str:
        """Return the counts of each fault and job, and of all in the last line."""
        total: Counter[str] = Counter()
        lines = []
        for name, counts in self.counts.items():
            total.update(counts)
            lines.append(f"{name:44}" + "".join(f"{counts[key]:>13}" for key in COUNTS))
        head = f"{'':44}" + "".join(f"{key:>13}" for key in COUNTS)
        last = " ".join(f"{key} {total[key]}," for key in COUNTS)[:-1]
        return "\n".join(["", head, *lines, last])


def tell_modules(target: Path) -> None:
    """Write the names of imported modules at the end of this process."""
    known = set(sys.modules)
    atexit.register(lambda: target.write_text("\n".join(set(sys.modules) - known)))


def still_there(before: Any, now: Any) -> bool:
    """Return whether a list only grew, a number did not fall, and anything else is the same."""
    if isinstance(before, list) and isinstance(now, list):
        return now[: len(before)] == before
    if isinstance(before, dict):
        return isinstance(now, dict) and all(still_there(v, now.get(k)) for k, v in before.items())
    if isinstance(before, int) and isinstance(now, int) and before < 1 << 12:
        return now >= before
    return before == now


def files_below(folder: Path) -> set[str]:
    """Return the names of all files, without what a name holds of a process."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def write_checkpoint(bench: Bench, data: Path) -> Path:
    """Write a pre-trained ResNet-18 without training."""
    import torch

    from moco_transfer.models import build_encoder
    from moco_transfer.pretrain import MoCo

    torch.manual_seed(0)
    moco = MoCo(lambda num_classes: build_encoder("resnet18", num_classes=num_classes))
    state = {f"module.{name}": tensor for name, tensor in moco.state_dict().items()}
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": state}, data / "moco.pth.tar")
    return data / "moco.pth.tar"


def signals(bench: Bench, name: str, trials: int) -> Iterator[None]:
    """SIGKILL and SIGTERM in turn at random moments, a second one in every fourth trial."""
    from faults.server import Run

    job, (seconds, _, _) = bench.jobs[name], bench.uninterrupted(name)
    for number in range(max(2, trials)):
        signum = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        with bench.trial(signum.name, name) as note:
            bench.clear(job)
            saved = None
            for again in range(1 + (bench.dice.random() < 0.25)):
                run = Run(job.argv(bench.out, resume=bool(again)), bench.log)
                run.wait(bench.dice.uniform(0, 1.05 * seconds))
                run.end(signum)
                if left := run.orphans():
                    note("left behind", f"processes {left}")
            saved = job.saved(bench.out) if bench.out.exists() else None
            bench.resume_and_compare(name, note, saved, killed=signum == signal.SIGKILL)
        yield


def worker_killed(bench: Bench, name: str, trials: int) -> Iterator[None]:
    """A data worker is killed: the run ends with a sentence, and can be resumed."""
    from faults.server import Run

    job = bench.jobs[name]
    for _ in range(trials if "two workers" in name else 0):
        seconds, _, _ = bench.uninterrupted(name)
        with bench.trial("worker killed", name) as note:
            bench.clear(job)
            run = Run(job.argv(bench.out), bench.log)
            ended = run.wait(bench.dice.uniform(0, seconds))
            if not ended and (workers := run.children()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(bench.dice.choice(workers), signal.SIGKILL)
            if not ended and not run.wait():
                run.end(signal.SIGKILL)
                note("unequal", "hangs without its worker")
            if run.status not in (0, 1):
                note("unequal", f"status {run.status} without its worker")
            bench.resume_and_compare(name, note, job.saved(bench.out), killed=False)
        yield


def clock_set_back(bench: Bench, name: str, trials: int) -> Iterator[None]:
    """The clock falls by a day with each look at it."""
    from faults.server import Run

    def backwards() -> None:
        start, count = time.time(), iter(range(1 << 60))
        time.time = lambda: start - 86400 * next(count)

    job, (seconds, _, _) = bench.jobs[name], bench.uninterrupted(name)
    for _ in range(max(1, trials // 10)):
        with bench.trial("clock set back", name) as note:
            bench.clear(job)
            run = Run(job.argv(bench.out), bench.log, backwards)
            run.wait(bench.dice.uniform(0, 1.05 * seconds))
            run.end(signal.SIGKILL)
            saved = job.saved(bench.out) if bench.out.exists() else None
            bench.resume_and_compare(name, note, saved, killed=True)
            results = bench.out / "results.json"
            if results.exists() and json.loads(results.read_text()).get("wall_sec", 0) < 0:
                note("unequal", "a negative time")
        yield


def damaged_checkpoints(bench: Bench, name: str, trials: int) -> Iterator[None]:
    """The pointer or the newest checkpoint is cut off or changed: the one before is taken."""
    from faults.server import Run

    job = bench.jobs[name]
    for number in range(trials if name in CHECKPOINTS else 0):
        seconds, _, _ = bench.uninterrupted(name)
        with bench.trial("damaged checkpoint", name) as note:
            bench.clear(job)
            run = Run(job.argv(bench.out), bench.log)
            wanted = bench.dice.choice((1, 2))
            while len(list(bench.out.glob("checkpoint_*.pth"))) < wanted and not run.wait(0.01):
                pass
            run.wait(bench.dice.uniform(0, seconds / 4))
            run.end(signal.SIGKILL)
            found = sorted(bench.out.glob("checkpoint_*.pth"))
            target = found[-1] if number % 3 else bench.out / "last_checkpoint"
            damage(target, bench.dice)
            if len(found) == 1 and number % 3:
                shutil.rmtree(bench.out)  # refused, with a sentence: nothing else is left
            bench.resume_and_compare(name, note, killed=True)
        yield


def damage(path: Path, dice: random.Random) -> None:
    """Cut a file off or change some of its bytes."""
    data = bytearray(path.read_bytes() if path.exists() else b"\0")
    kind = dice.randrange(3)
    if kind == 0:
        del data[dice.randrange(len(data)) :]
    for _ in range((0, 1, 100)[kind]):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def refusing_disk(bench: Bench, name: str, trials: int) -> Iterator[None]:
    """At the n-th change of a file: full, over quota, read-only, broken, or the end of the
    process. All of them at each n, or, of more than ``trials``, that many.
    """
    from faults import disk
    from faults.server import Run

    if not disk.is_loaded():
        print("no C compiler: the disk that refuses is left out")
        return
    errors = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, 0)
    job = bench.jobs[name]
    trials = max(1, round(trials * job.weight))
    bench.uninterrupted(name)
    bench.clear(job)
    counted = bench.out.with_name("changes.txt")
    Run(job.argv(bench.out), bench.log, disk.counting(bench.out, counted)).wait()
    changes = int(counted.read_text())
    places = [(place, error) for place in range(changes) for error in errors]
    bench.dice.shuffle(places)
    for place, error in places[:trials]:
        with bench.trial(f"disk {errno.errorcode.get(error, 'ended')}", name) as note:
            bench.clear(job)
            arm = functools.partial(disk.arm, bench.out, place, error)
            run = Run(job.argv(bench.out), bench.log, arm)
            if not run.wait():
                run.end(signal.SIGKILL)
                note("unequal", f"hangs at change {place} of {changes}")
            if run.status not in (0, 1, 2, -signal.SIGKILL):
                note("unequal", f"status {run.status} at change {place} of {changes}")
            if left := run.orphans():
                note("left behind", f"processes {left}")
            saved = job.saved(bench.out) if bench.out.exists() else None
            killed = run.status == -signal.SIGKILL
            bench.resume_and_compare(name, note, saved, killed=killed)
        yield


def power_cuts(bench: Bench, name: str, trials: int) -> Iterator[None]:
    """What was not synced is gone, at ``trials`` moments: names as well, or contents alone."""
    from faults import power
    from faults.server import Run

    job = bench.jobs[name]
    if name == "benchmark" or "workers" in name:
        return  # what another process has synced is not seen
    bench.uninterrupted(name)
    bench.clear(job)
    states = bench.out.with_name(f"states of {name}")
    record = power.recording(bench.out, states, trials * job.weight, bench.dice.random())
    Run(job.argv(bench.out), bench.log, record).wait()
    for state in sorted(states.iterdir(), key=lambda _: bench.dice.random()):
        with bench.trial("power cut", name) as note:
            bench.clear(job)
            shutil.rmtree(bench.out, ignore_errors=True)
            promised = json.loads((state / "promised.json").read_text()).get("checkpoint", "")
            if (state / "out").exists():
                shutil.copytree(state / "out", bench.out)
            found = bench.out / "last_checkpoint"
            named = found.read_text().strip() if found.exists() else ""
            there = [named, *(path.name for path in bench.out.glob("checkpoint_*.pth"))]
            if max(there) < promised:
                note("lost", f"{promised} was saved, {named!r} is there")
            saved = job.saved(bench.out) if bench.out.exists() else None
            bench.resume_and_compare(name, note, saved, killed=True)
        yield


FAULTS = {
    "signals": signals,
    "worker": worker_killed,
    "clock": clock_set_back,
    "checkpoints": damaged_checkpoints,
    "disk": refusing_disk,
    "power": power_cuts,
}


def prepare() -> None:
    """Import what the runs need, and let the small ones be small."""
    import torch
    import torch.utils.tensorboard  # noqa: F401
    import tqdm
    from pretrain.small_runs import SmallEncoder

    import moco_transfer.cli.pack
    import moco_transfer.data.images.pack as pack
    import moco_transfer.finetune.run
    import moco_transfer.finetune.torchvision_engine.build
    import moco_transfer.pretrain.linear
    import moco_transfer.pretrain.plan
    import moco_transfer.pretrain.run
    import moco_transfer.report.html.page  # noqa: F401
    from faults.server import Child
    from moco_transfer.benchmark import launch

    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # no thread, which a fork would not have
    tqdm.tqdm.set_lock(threading.RLock())  # one that a killed fork does not hold for ever
    for depth in (18, 50):
        moco_transfer.models.BLOCKS[depth] = (1, 1, 1, 1)
    launch.LocalLauncher.start = lambda *words: Child(*words)
    moco_transfer.pretrain.plan.build_encoder = SmallEncoder
    pack.PackSettings = functools.partial(pack.PackSettings, images_per_shard=6)


def main() -> int:
    """Run the bench; returns 1 if anything was lost, unequal or left behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50, help="of each fault and verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then no more trials")
    parser.add_argument("--only", nargs="+", default=[], help="names of jobs")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
    )
    from faults import disk

    disk.load()  # starts this program again
    prepare()
    # No TemporaryDirectory: each fork would remove it at its end.
    memory = Path("/dev/shm")  # noqa: S108 - nothing here must outlive this process
    work = Path(tempfile.mkdtemp(prefix="faults", dir=memory if memory.is_dir() else None))
    try:
        bench = Bench(work, seed=args.seed, only=args.only)
        todo = [
            FAULTS[fault](bench, name, args.trials) for fault in args.faults for name in bench.jobs
        ]
        until = time.monotonic() + args.minutes * 60
        while todo and time.monotonic() < until:  # one trial of each at a time
            todo = [each for each in todo if next(each, "ended") is None]
            print(bench.table().splitlines()[-1], flush=True)
        print(bench.table(), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    total = sum(sum(c[key] for key in COUNTS[1:]) for c in bench.counts.values())
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
