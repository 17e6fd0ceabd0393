"""What is asked of a device: its precision, copies to it, and memory that stays allocated."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The precision of a run."""

    name: str  # fp32, bf16 or fp16
    reason: str
    is_emulated: bool = False  # computed in software, more slowly than fp32

    @property
    def dtype(self) -> torch.dtype | None:
        """Autocast type, None for fp32."""
        return DTYPES[self.name]

    def describe(self) -> str:
        """Return ``bf16 (reason)``."""
        return f"{self.name} ({self.reason})"


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


def choose_precision(asked: str, device: torch.device) -> Precision:
    """Return the precision for ``auto`` (what the device computes natively) or one of DTYPES.

    Raises:
        InputError: If ``asked`` is none of these, or fp16 is asked of a CPU.
    """
    native = computes_bf16(device)
    if asked == "auto":
        if native:
            return Precision("bf16", f"this {device.type} computes bfloat16 natively")
        if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
            return Precision("fp16", "this GPU computes float16 natively, not bfloat16")
        return Precision("fp32", f"this {device.type} does not compute bfloat16 natively")
    if asked not in DTYPES:
        raise InputError(f"Precision {asked!r}: expected auto, {', '.join(DTYPES)}.")
    if asked == "fp16" and device.type != "cuda":
        raise InputError("Precision fp16 needs a GPU (CUDA); use auto, fp32 or bf16.")
    return Precision(asked, "as asked", is_emulated=asked == "bf16" and not native)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; on a GPU the copy is queued and the host continues.

    A plain ``.to(device)`` would wait until the GPU has finished all earlier work.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
