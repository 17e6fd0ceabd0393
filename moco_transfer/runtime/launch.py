"""``--num-gpus N``: the program starts itself again under torchrun, its only launcher, by
``python -m moco_transfer.runtime.launch``.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from .errors import InputError


def launch_options() -> argparse.ArgumentParser:
    """Return the options of several processes, to be a parent of a verb's parser."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = parser.add_argument_group("several processes (started by torchrun)").add_argument
    numbers = {
        "--num-gpus": (1, "processes on this machine"),
        "--num-machines": (1, "machines in all"),
        "--machine-rank": (0, "number of this machine, from 0"),
    }
    for name, (default, what) in numbers.items():
        add(name, type=int, default=default, metavar="N", help=what)
    add("--dist-url", metavar="URL", help="tcp://HOST:PORT of machine 0, for several machines")
    return parser


def torchrun_command(module: str, words: Sequence[str]) -> list[str] | None:
    """Return the command that runs ``python -m module words`` in several processes.

    ``words`` hold the options of :func:`launch_options`, the command does not. None where one
    process is enough.

    Raises:
        InputError: If the options contradict each other, or torchrun has started this process.
    """
    asked, rest = launch_options().parse_known_args(list(words))
    has_address = asked.num_machines == 1 or (asked.dist_url or "").startswith("tcp://")
    is_ranked = 0 <= asked.machine_rank < asked.num_machines
    if asked.num_gpus < 1 or not is_ranked or not has_address:
        raise InputError(
            f"--num-gpus {asked.num_gpus} --num-machines {asked.num_machines} --machine-rank"
            f" {asked.machine_rank} --dist-url {asked.dist_url}: expected at least one process, a"
            " rank below --num-machines, and for several machines tcp://HOST:PORT of machine 0."
        )
    if asked.num_gpus == asked.num_machines == 1:
        return None
    if "WORLD_SIZE" in os.environ:
        raise InputError(
            "WORLD_SIZE is set: torchrun has started this process. Leave out --num-gpus and"
            " --num-machines."
        )
    where = ["--standalone"]
    if asked.num_machines > 1:
        host, _, port = asked.dist_url.removeprefix("tcp://").rpartition(":")
        where = [f"--nnodes={asked.num_machines}", f"--node_rank={asked.machine_rank}"]
        where += [f"--master_addr={host}", f"--master_port={port}"]
    processes = [*where, f"--nproc_per_node={asked.num_gpus}"]
    return [sys.executable, "-m", __name__, *processes, "-m", module, *rest]


def replace_by_torchrun(command: list[str]) -> None:
    """Replace this process by the command, so that signals and the exit status are torchrun's.

    torchrun sets OMP_NUM_THREADS to 1 where it is unset; the cores are shared out instead.
    """
    count = int(next(w for w in command if w.startswith("--nproc_per_node")).rpartition("=")[2])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    machines = [word.partition("=")[2] for word in command if word.startswith("--nnodes=")]
    if machines:  # torchrun waits for the others without a word
        place = " ".join(word for word in command if word.startswith("--master_"))
        print(f"waiting for {machines[0]} machines ({place})", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os.execv(command[0], command)


def run_torchrun() -> int:
    """Run torchrun without its report: a process that failed has printed its own sentence.

    Returns:
        The status of the first process that failed, 143 after SIGTERM or Ctrl-C, or 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for name, level in (("multiprocessing", logging.CRITICAL), ("agent.server", logging.ERROR)):
        logging.getLogger(f"torch.distributed.elastic.{name}.api").setLevel(level)
    try:
        run(parse_args(None))
    except SignalException:  # the processes have saved, as one alone does
        return 143
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(f"moco-transfer: process {rank} was ended by {name}, not by itself.", file=sys.stderr)
        if name == "SIGKILL":
            print("The machine may have run out of memory.", file=sys.stderr)
        return 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(run_torchrun())
