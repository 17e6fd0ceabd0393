"""A Slurm of one node on this machine, without accounting, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "squeue", "srun")

_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE
"""


def why_not() -> str:
    """Return what this machine lacks for a Slurm, or nothing."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "starting Slurm needs root"


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start Slurm below a folder; yields the environment variables by which its programs find it,
    and ends it, with its jobs.
    """
    host = socket.gethostname().partition(".")[0]
    with contextlib.ExitStack() as sockets:
        free = [sockets.enter_context(socket.socket()) for _ in range(2)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in free]
    (folder / "state").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "slurm.conf").write_text(_CONFIG.format(host=host, folder=folder, ports=ports))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    found = {"SLURM_CONF": str(folder / "slurm.conf")}
    environment = os.environ | found | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    files |= {"seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    started = []
    try:
        for command in (
            ["munged", "--force", "--foreground", *munge],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D"],
        ):
            log = (folder / f"{command[0]}.out").open("wb")
            started.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
            )
            log.close()
            time.sleep(1)
        until = time.monotonic() + 60
        state = ["sinfo", "--noheader", "--format=%T"]
        while (
            "idle"
            not in subprocess.run(state, env=environment, capture_output=True, text=True).stdout
        ):
            if time.monotonic() > until or any(process.poll() is not None for process in started):
                logs = "".join(x.read_text(errors="replace")[-500:] for x in folder.glob("*.log"))
                raise RuntimeError(f"Slurm did not start:\n{logs}")
            time.sleep(0.2)
        yield found
    finally:
        subprocess.run(["scancel", f"--user={os.getuid()}"], env=environment, capture_output=True)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
