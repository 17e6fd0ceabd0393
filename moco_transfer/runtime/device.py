"""What is asked of a device: its precision, copies to it, compiled kernels, and memory that stays
allocated.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .distributed import broadcast_object
from .errors import InputError

logger = logging.getLogger(__name__)

# How much faster than float32 a CPU's bfloat16 must be for `auto` to take it. CPUs with AMX reach 2
# and more; AVX512-BF16 alone may take twice as long as float32, though it is there.
WORTHWHILE = 1.2

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The precision of a run."""

    name: str  # fp32, bf16 or fp16
    reason: str

    @property
    def dtype(self) -> torch.dtype | None:
        """Autocast type, None for fp32."""
        return DTYPES[self.name]

    def describe(self) -> str:
        """Return ``bf16 (reason)``."""
        return f"{self.name} ({self.reason})"


FP32 = Precision("fp32", "the default")


@dataclass(frozen=True)
class Compute:
    """Where and in which precision a network computes."""

    device: torch.device
    precision: Precision = FP32

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        dtype = self.precision.dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def num_gpus() -> int:
    """Return how many GPUs (CUDA) this process may use."""
    return torch.cuda.device_count()


def best_device() -> torch.device:
    """Return a GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_memory() -> int:
    """Return the bytes that the first GPU has."""
    return torch.cuda.get_device_properties(0).total_memory


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that tensors held on a GPU so far; None for another device."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def wants_pinned(device: torch.device) -> bool:
    """Return whether copies to the device need pinned memory, or the host would wait for them."""
    return device.type == "cuda"


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def copied(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the tensors on a GPU; on another device as they are.

    From pinned memory they are copied on a stream of their own. The host is ahead of a GPU, so that
    the copy runs during the step before.
    """
    if device.type != "cuda":
        return tensors
    current, stream = torch.cuda.current_stream(device), _copying(device)
    with torch.cuda.stream(stream):
        found = {name: t.to(device, non_blocking=True) for name, t in tensors.items()}
    current.wait_stream(stream)
    for tensor in found.values():
        tensor.record_stream(current)  # its memory was allocated on the other stream
    return found


def computes_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.6
        return torch.cpu._is_avx512_bf16_supported()
    found = torch.cpu.get_capabilities()
    return any(found.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


@functools.cache
def bf16_speed() -> float:
    """Return how many times as fast as in float32 this CPU computes a convolution in bfloat16.

    In CPU time, which other processes hardly disturb: the best of five each, 3x3 on (8, 128, 28,
    28) channels-last, about 0.2 s.
    """
    images = torch.ones(8, 128, 28, 28).to(memory_format=torch.channels_last)
    layer = nn.Conv2d(128, 128, 3, padding=1)
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    with torch.no_grad():
        for _ in range(6):  # the first warms up: its times are never the best
            for dtype in best:
                x, convolve = images.to(dtype), layer.to(dtype)
                since = time.process_time()
                convolve(x)
                best[dtype] = min(best[dtype], time.process_time() - since)
    return best[torch.float32] / best[torch.bfloat16]


def choose_precision(asked: str, device: torch.device) -> Precision:
    """Return the precision for ``auto`` (what suits the device) or one of DTYPES. Collective for
    ``auto`` on a CPU with native bfloat16, whose speed process 0 measures.

    Raises:
        InputError: If ``asked`` is none of these, or fp16 is asked of a CPU.
    """
    native = computes_bf16(device)
    if asked == "auto":
        if native and device.type == "cpu":
            speed = broadcast_object(bf16_speed())
            reason = f"bfloat16 is {speed:.1f} times as fast as float32 on this CPU"
            return Precision("bf16" if speed >= WORTHWHILE else "fp32", reason)
        if native:
            return Precision("bf16", "this GPU computes bfloat16 natively")
        if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
            return Precision("fp16", "this GPU computes float16 natively, not bfloat16")
        return Precision("fp32", f"this {device.type} does not compute bfloat16 natively")
    if asked not in DTYPES:
        raise InputError(f"Precision {asked!r}: expected auto, {', '.join(DTYPES)}.")
    if asked == "fp16" and device.type != "cuda":
        raise InputError("Precision fp16 needs a GPU (CUDA); use auto, fp32 or bf16.")
    if asked == "bf16" and not native:
        slower = "slower than fp32"
        if device.type == "cpu":
            slower = f"a convolution takes {1 / bf16_speed():.1f} times as long as in fp32"
        logger.warning("bf16 is emulated on this %s, %s: use auto", device.type, slower)
    return Precision(asked, "as asked")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; on a GPU the copy is queued and the host continues.

    A plain ``.to(device)`` would wait until the GPU has finished all earlier work.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the numbers as float32 (n,) on the device; not to be changed. Made once, because a GPU
    would be waited for at each copy.
    """
    with torch.inference_mode(False):  # whoever asks first; training may ask next
        return torch.tensor(values, dtype=torch.float32, device=device)


@contextlib.contextmanager
def operators_of_a_run(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Let a GPU search the fastest convolutions for images of one size; or, ``deterministic``, let
    torch use none but operators that give the same bits each time, and fail where it has none.
    """
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when it is first used
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    torch.use_deterministic_algorithms(deterministic or before[1])
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1])


def runs_triton(device: torch.device) -> bool:
    """Return whether kernels compiled by Triton run on the device; elsewhere torch's operators
    compute the same in more launches.
    """
    return device.type == "cuda" and _triton_compiles()


@functools.cache
def _triton_compiles() -> bool:
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # builds Triton's launcher, with a C compiler
    except Exception as error:  # ImportError, or whatever the absence of a compiler raises
        logger.warning("Triton does not work here, so steps are slower: %s", error)
        return False
    return True


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; True with glibc.

    By default glibc returns it to the system, which costs 9,000 to 34,000 page faults in a step of
    ResNet-18 on a CPU. The process stays at its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; TypeError on Windows
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
