"""An iteration whose loss is not finite: what of it is saved, and what its replay says.

The network divides by 0 in its sixth pass, or is too large for fp16 in every one; the runs log
every four iterations.

Seen red under: the copy not kept at a log line; the state after the iteration saved; the loader
from the beginning of the run; the parent of a layer named; a replay in one precision; the
update not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from moco_transfer.cli.main import main
from moco_transfer.pretrain import plan
from moco_transfer.pretrain import run as run_module
from moco_transfer.runtime.checkpoint import load_checkpoint
from moco_transfer.runtime.distributed import get_rank

from .small_runs import SmallEncoder, config, pretrain
from .two_processes import run_in_two_processes


class Breaks(nn.Module):
    """Passes its input on, but in its sixth pass in training divides by 0, on one process."""

    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        self.rank = rank
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return x / (self.passes != 6) if get_rank() == self.rank else x


class BreaksBackward(Breaks):
    """In its sixth pass its output is right, and the gradient of its input is not a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return x + (x * 0).abs().sqrt() * 0 if self.passes == 6 else x


class Large(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1e5


def encoder_with(part: Callable[[], nn.Module]):
    def build(arch: str, **settings):
        encoder = SmallEncoder(arch, **settings)
        encoder.bn1 = nn.Sequential(encoder.bn1, part())
        return encoder

    return build


@pytest.fixture
def seen(monkeypatch) -> list[tuple[torch.Tensor, dict]]:
    """The weights before each step, and its batch."""
    found, step = [], run_module.step

    def noted(run, batch):
        found.append((run.model.encoder_q.conv1.weight.detach().clone(), batch))
        return step(run, batch)

    monkeypatch.setattr(run_module, "step", noted)
    return found


def diverge(pool: Path, out: Path, **changes) -> str:
    with pytest.raises(FloatingPointError) as error:
        pretrain(config(pool, out, **changes))
    return str(error.value)


def test_saved__is_the_state_before_the_iteration_and_its_batch(pool, tmp_path, monkeypatch, seen):
    monkeypatch.setattr(plan, "build_encoder", encoder_with(Breaks))
    message = diverge(pool, tmp_path)
    file = tmp_path / "nonfinite_00000006.pth"
    assert "Iteration 6:" in message and str(file) in message and "--replay" in message
    assert len(seen) == 8 + 2  # to the next log line, and again from the last
    weights, batch = seen[5]
    saved = load_checkpoint(file)
    assert saved["iteration"] == 6 and "MOCO" in saved["config"]
    assert torch.equal(saved["state"]["state_dict"]["encoder_q.conv1.weight"], weights)
    assert saved["state"]["optimizer"]["state"] and weights.isfinite().all()
    for name in ("views", "index"):
        assert torch.equal(saved["batches"][0][name], batch[name])


def test_replay__names_the_layer_and_that_fp32_breaks_as_well(pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "build_encoder", encoder_with(Breaks))
    command = diverge(pool, tmp_path).split("`moco-transfer ")[1].split("`")[0]
    before = sorted(tmp_path.iterdir())
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    assert "Iteration 6," in said and "loss nan" in said and "Reproduced in fp32" in said
    assert "output of encoder_q.bn1.1, Breaks" in said and "encoder_k" not in said
    assert "after the update" in said and sorted(tmp_path.iterdir()) == before


def test_saved__is_the_iteration_that_spoilt_the_weights(pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "build_encoder", encoder_with(BreaksBackward))
    message = diverge(pool, tmp_path)
    assert "Iteration 7:" in message and "nonfinite_00000006.pth" in message
    assert main(message.split("`moco-transfer ")[1].split("`")[0].split()) == 0
    said = capsys.readouterr().out
    assert "output of" not in said and "gradient nearest to the loss: encoder_q.bn1.0." in said


def test_replay__tells_the_precision_from_the_data(pool, tmp_path, monkeypatch, capsys, request):
    request.getfixturevalue("fp16_on_the_cpu")
    monkeypatch.setattr(plan, "build_encoder", encoder_with(Large))
    diverge(pool, tmp_path, TRAIN__PRECISION="fp16")
    words = ["--config-file", str(tmp_path / "config.yaml")]
    file = tmp_path / "nonfinite_00000001.pth"
    assert main(["pretrain", *words, "--replay", str(file)]) == 0
    said = capsys.readouterr().out.splitlines()
    fp16 = next(number for number, line in enumerate(said) if line.startswith("fp16: loss nan"))
    assert "bn1.1, Large" in said[fp16 + 1] and "In fp32 it is finite" in said[-1]
    assert next(line for line in said if line.startswith("fp32: loss"))
    assert main(["pretrain", *words, "--replay", str(tmp_path / "config.yaml")]) == 2


def _two_processes(rank: int, folder: Path, pool: Path) -> list[str]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "build_encoder", encoder_with(partial(Breaks, rank=1)))
        message = diverge(pool, folder)
    return [message]


def test_saved__holds_the_batch_of_each_process(pool, tmp_path):
    messages = run_in_two_processes(_two_processes, tmp_path, tmp_path / "out", pool)
    saved = load_checkpoint(tmp_path / "out" / "nonfinite_00000006.pth")
    assert all("nonfinite_00000006.pth" in message for (message,) in messages)
    assert saved["world_size"] == 2
    parts = [set(batch["index"].tolist()) for batch in saved["batches"]]
    assert [len(part) for part in parts] == [4, 4] and not parts[0] & parts[1]
