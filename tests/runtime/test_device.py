"""``auto`` asks the device; what is asked for by name is kept, and its emulation is noticed.

Went red under: bf16 on a CPU without it; fp16 on a GPU that has bf16; an emulated bf16 not flagged.
"""

import pytest
import torch

from moco_transfer.runtime import device as module
from moco_transfer.runtime.device import bf16_speed, choose_precision
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
