"""What a machine refuses (memory, shared memory, open files, disks, processes), in sentences.

``explain`` turns the exceptions of PyTorch and the system into one; it imports neither.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError

SHARED_MEMORY = Path("/dev/shm")  # where Linux has it; others have no such limit

# Exit statuses of a data worker that cannot hand over its batch.
NO_SHARED_MEMORY, NO_OPEN_FILE = 71, 72

_DEFAULTS = {"memory": "the batch", "workers": "the number of data workers"}
# What the libraries of a GPU say -> in a sentence. torch's own message on memory has numbers.
_OF_GPUS = {
    r"CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED": (
        "The GPU is out of memory. Lower {memory}, or end what else uses it (nvidia-smi)."
    ),
    r"CUDA-capable device\(?s\)? (is/)?are busy": (
        "The GPU is taken by another process, and admits one alone. Choose another by"
        " CUDA_VISIBLE_DEVICES (nvidia-smi lists them)."
    ),
    r"no kernel image is available": (
        "This PyTorch has no code for this GPU. moco-transfer doctor names both: install a build of"
        " PyTorch that lists the GPU, or use the device cpu."
    ),
    r"Duplicate GPU detected": (
        "Two processes of the run use the same GPU, which NCCL does not allow. Start one process a"
        " GPU, each with its own LOCAL_RANK."
    ),
}
_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_OF_FILES = (errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EFBIG)
_OPEN_FILES = (errno.EMFILE, errno.ENFILE)


def check_shared_memory(batch_bytes: float, *, batches: int, key: str, num_workers: int) -> None:
    """Raise InputError if the batches that data workers hold do not fit into shared memory, where
    they would fail or hang.

    Args:
        batch_bytes: Of one batch, about.
        batches: That each worker prepares ahead.
        key: What sets the number of workers, for the message.
        num_workers: Of one process.
    """
    free = free_bytes(SHARED_MEMORY)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    ahead = batches * num_workers * processes
    if free is None or ahead * batch_bytes <= free:
        return
    fitting = int(free // (batches * batch_bytes * processes))
    fewer = f"{key} {fitting} or " * (fitting > 0)
    raise InputError(
        f"One batch needs about {_mb(batch_bytes)} of shared memory and {ahead} are prepared ahead"
        f" ({key} {num_workers}), {_mb(ahead * batch_bytes)} in all, but {SHARED_MEMORY} has"
        f" {_mb(free)} free. Enlarge it (docker run --shm-size"
        f" {max(1, round(2 * ahead * batch_bytes / 1e9))}g), or set {fewer}{key} 0."
    )


def free_bytes(folder: str | os.PathLike[str]) -> int | None:
    """Return how many bytes can be written below a folder, None if it is not known."""
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):  # not there; AttributeError on Windows
        return None
    return status.f_bavail * status.f_frsize


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], outcome: str = "") -> Iterator[None]:
    """Turn the block's failure to write ``path`` into an InputError, which says the ``outcome``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        refused = system_error(error)
        if refused is None or refused.errno not in (*_DISK_FULL, *_OF_FILES):
            raise
        reason = refused.strerror or refused
        raise InputError(
            f"Cannot write {path}: {reason}{outcome}.{_room(refused, path)}"
        ) from error


def _room(refused: OSError, path: str | os.PathLike[str]) -> str:
    free = free_bytes(Path(path).parent)
    if refused.errno not in _DISK_FULL or free is None:
        return ""
    return f" {free:,} bytes are free there: free more, or choose another folder."


def system_error(error: BaseException) -> OSError | None:
    """Return the system's error behind an exception: itself, or what it was raised from."""
    return next((one for one in _chain(error) if isinstance(one, OSError)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def raise_file_limit() -> None:
    """Let this process and its workers open as many files as the system allows it."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # ImportError on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def without_lost_workers(args: Any) -> None:
    """A ``sys.unraisablehook``: leave out the traceback of a data worker that was killed after its
    last batch. Nothing is lost by it; before that, the run ends with a sentence.
    """
    if "DataLoader worker" not in str(args.exc_value):
        sys.__unraisablehook__(args)


def let_workers_end() -> None:
    """Take out torch's handler of ended data workers: it raises again for each that ends, and so
    while the first error is printed.
    """
    with contextlib.suppress(AttributeError, ValueError):  # Windows; not the main thread
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def explain(error: BaseException, settings: Mapping[str, str] | None = None) -> str | None:
    """Return what a machine refused and what to do, None for any other exception.

    ``settings`` names what to lower: ``memory`` for a smaller batch, ``workers``.
    """
    names = {**_DEFAULTS, **(settings or {})}
    # The cause first: what torch raises in the end may only say that a worker is gone.
    text = "\n".join(map(str, reversed(list(_chain(error)))))
    is_memory = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    if is_memory or "DefaultCPUAllocator: can't allocate memory" in text:
        return f"{_memory(text)}. Lower {names['memory']}."
    if found := next((what for sign, what in _OF_GPUS.items() if re.search(sign, text)), None):
        return found.format(**names)
    refused = system_error(error)
    code = re.search(r"DataLoader worker .* exit code (\d+)", text)
    status = int(code[1]) if code else 0
    open_files = refused is not None and refused.errno in _OPEN_FILES
    if open_files or status == NO_OPEN_FILE or re.search(r"Too many open files|ancdata", text):
        return (
            f"Too many open files: a process may have {_file_limit()}. Raise the limit (ulimit -n),"
            f" or lower {names['workers']}."
        )
    if status == NO_SHARED_MEMORY or re.search(r"shared memory|Bus error|/dev/shm", text):
        free = free_bytes(SHARED_MEMORY)
        has = f", {SHARED_MEMORY} has {_mb(free)} free" if free is not None else ""
        return (
            f"Shared memory is too small for the batches of the data workers{has}: enlarge it"
            f" (docker run --shm-size 8g), or set {names['workers']} to 0."
        )
    if match := re.search(r"DataLoader worker \(pid\S* ([\d, ]+)\) ([\w :]+)", text):
        return (
            f"The data worker {match[1]} {match[2].strip()}: the system ends processes when memory"
            f" runs out ({_machine_memory()}). Lower {names['workers']} or {names['memory']}."
        )
    if refused is not None and refused.errno in (*_DISK_FULL, *_OF_FILES):
        path = refused.filename or "a file"
        return f"Cannot read or write {path}: {refused.strerror}.{_room(refused, path)}"
    places = (frame.filename for frame in traceback.extract_tb(error.__traceback__))
    is_cut = isinstance(error, EOFError) and any("multiprocessing" in place for place in places)
    if isinstance(error, ConnectionError) or is_cut:  # while a worker was asked for its batch
        return (
            f"A data worker has ended; its own message says why ({error!r}). Lower"
            f" {names['workers']} or {names['memory']}, or set {names['workers']} to 0."
        )
    if re.search(r"Application timeout|Timed out waiting|NCCL.*timeout|Watchdog caught", text):
        return (
            "Another process of the run has not answered within MOCO_TRANSFER_TIMEOUT seconds"
            f" ({os.environ.get('MOCO_TRANSFER_TIMEOUT')}): it hangs, or its machine is lost."
            " `moco-transfer doctor OUTPUT_DIR` tells which; continue with --resume."
        )
    if re.search(r"Connection (closed|reset) by peer|Broken pipe|heartbeat", text):
        first = text.strip().splitlines()[0][:120]
        return (
            "Another process of the run has ended: its own message says why, or it was killed, or"
            f" its machine is lost ({first}). Continue with --resume."
        )
    return None


def _memory(text: str) -> str:
    """Return who ran out of memory, what there is and what was asked for."""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    more = f", {asked[1]} more were asked for" if asked else ""
    if gpu := re.search(r"GPU (\d+) has a total capacity of ([\d.]+ \w+)", text):
        used = re.search(r"this process has ([\d.]+ \w+) memory in use", text)
        held = f", this process used {used[1]}" if used else ""
        return f"GPU {gpu[1]} is out of memory: it has {gpu[2]}{held}{more}"
    return f"Out of memory: {_machine_memory()}{more}"


def _machine_memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        whole, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (ValueError, AttributeError):  # another system than Linux
        return "of the machine"
    return f"the machine has {whole / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free now"


def _file_limit() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return "no more"
    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
