"""``auto`` asks the device; what is asked for by name is kept, and its emulation is noticed. What
only a GPU does is checked by what is asked of torch.

Went red under: bf16 on a CPU without it; fp16 on a GPU that has bf16; an emulated bf16 not flagged;
a copy whose memory is not held for the step, or that the step does not wait for; switches of cuDNN
that stay when a run ends.
"""

import contextlib
import os

import pytest
import torch

from moco_transfer.data.views import loading
from moco_transfer.runtime import device as module
from moco_transfer.runtime.device import (
    bf16_speed,
    choose_precision,
    constant,
    copied,
    operators_of_a_run,
)
from moco_transfer.runtime.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    def pretend(*, cpu=None, capability=None, speed=2.0):
        monkeypatch.setattr(module, "bf16_speed", lambda: speed)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu or {})
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0)
        )

    return pretend


@pytest.mark.parametrize(
    ("flags", "speed", "expected"),
    [
        ({"avx512_bf16": True}, 1.8, "bf16"),
        ({"avx512_bf16": True}, 0.5, "fp32"),  # there, and slower than float32
        ({"amx_bf16": True}, 4.0, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, 4.0, "fp32"),
        ({}, 4.0, "fp32"),
    ],
)
def test_auto__cpu(machine, flags, speed, expected):
    machine(cpu=flags, speed=speed)
    assert choose_precision("auto", CPU).name == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")],
)
def test_auto__gpu(machine, capability, expected):
    machine(capability=capability)
    assert choose_precision("auto", GPU).name == expected


def test_asked__is_kept_and_emulation_warned_of(machine, caplog):
    machine(cpu={"avx512_bf16": True})
    assert choose_precision("bf16", CPU).dtype == torch.bfloat16
    machine(cpu={}, speed=0.25)
    assert choose_precision("fp32", CPU).dtype is None
    assert not caplog.records
    chosen = choose_precision("bf16", CPU)
    assert (chosen.name, chosen.dtype) == ("bf16", torch.bfloat16)
    assert "bf16 is emulated" in caplog.text and "4.0 times" in caplog.text


@pytest.mark.parametrize("asked", ["fp16", "fp8"])
def test_asked__refuses_what_the_device_has_not(machine, asked):
    machine()
    with pytest.raises(InputError, match=asked):
        choose_precision(asked, CPU)


def test_bf16_speed__is_a_ratio_of_measured_times():
    assert 0.01 < bf16_speed() < 100


class Batch:
    """A pinned tensor, or its copy, that notes what is done with it."""

    def __init__(self, log: list) -> None:
        self.log = log

    def to(self, device, *, non_blocking):
        self.log.append(("copy", device.type, non_blocking))
        return Batch(self.log)

    def record_stream(self, stream):
        self.log.append(("hold for", stream))


def test_copied__on_a_stream_of_its_own(monkeypatch):
    log = []

    class Stream:
        def wait_stream(self, other):
            log.append((self, "waits for", other))

    current, own = Stream(), Stream()

    @contextlib.contextmanager
    def within(stream):
        log.append(("enter", stream))
        yield
        log.append(("leave", stream))

    monkeypatch.setattr(module, "_copying", lambda device: own)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", within)
    found = copied({"views": Batch(log), "index": Batch(log)}, GPU)
    assert found.keys() == {"views", "index"}
    copy, hold = ("copy", "cuda", True), ("hold for", current)
    waiting = (current, "waits for", own)
    assert log == [("enter", own), copy, copy, ("leave", own), waiting, hold, hold]
    assert copied({"views": 1}, CPU) == {"views": 1}


def test_to_device__yields_a_batch_before_the_next_is_there(monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "copied", lambda tensors, device: {"moved": list(tensors)})

    def batches():
        for number in range(2):
            asked.append(number)
            yield {"views": torch.ones(1), "colours": torch.ones(1), "given_up": 0}

    first = next(loading.to_device(batches(), GPU))
    assert asked == [0] and first["moved"] == ["views"]  # colours stay on the CPU


@pytest.mark.parametrize("deterministic", [False, True])
def test_operators_of_a_run__are_switched_back(monkeypatch, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(KeyError), operators_of_a_run(GPU, deterministic=deterministic):
        assert torch.backends.cudnn.benchmark is not deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
        raise KeyError
    assert not torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
    with operators_of_a_run(CPU, deterministic=False):
        assert not torch.backends.cudnn.benchmark


def test_constant__is_made_once_and_can_be_trained_with():
    with torch.inference_mode():
        made = constant((1.5, 2.0), CPU)
    assert constant((1.5, 2.0), CPU) is made and made.tolist() == [1.5, 2.0]
    weight = torch.ones(2, requires_grad=True)
    (weight * constant((1.5, 2.0), CPU)).sum().backward()
    assert weight.grad.tolist() == [1.5, 2.0]
