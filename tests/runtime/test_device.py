"""``auto`` asks the device; what is asked for by name is kept, and its emulation is noticed.

Went red under: bf16 on a CPU without it; fp16 on a GPU that has bf16; an emulated bf16 not flagged.
"""

import pytest
import torch

from moco_transfer.runtime.device import choose_precision
from moco_transfer.runtime.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    def pretend(*, cpu=None, capability=None):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu or {})
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0)
        )

    return pretend


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto__cpu(machine, flags, expected):
    machine(cpu=flags)
    assert choose_precision("auto", CPU).name == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")],
)
def test_auto__gpu(machine, capability, expected):
    machine(capability=capability)
    assert choose_precision("auto", GPU).name == expected


def test_asked__is_kept_and_emulation_noticed(machine):
    machine(cpu={})
    chosen = choose_precision("bf16", CPU)
    assert (chosen.name, chosen.dtype, chosen.is_emulated) == ("bf16", torch.bfloat16, True)
    assert not choose_precision("fp32", CPU).is_emulated
    machine(cpu={"avx512_bf16": True})
    assert not choose_precision("bf16", CPU).is_emulated


@pytest.mark.parametrize("asked", ["fp16", "fp8"])
def test_asked__refuses_what_the_device_has_not(machine, asked):
    machine()
    with pytest.raises(InputError, match=asked):
        choose_precision(asked, CPU)
