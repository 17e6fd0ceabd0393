"""SplitBN as one operator, compared with torch's batch norm of one group after the other.

Seen red under: the variance of the running statistics divided by n; the first rows of a group
    where sizes differ; an input's gradient without the weight's sum; a momentum of 0.9 in a group.
The test on a GPU was written without one at hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moco_transfer.pretrain.info_nce import info_nce
from moco_transfer.pretrain.moco import MoCo
from moco_transfer.pretrain.shuffle import SplitBatchNorm2d
from moco_transfer.pretrain.split_norm import operator

BACK_ENDS = ["loop", "triton"]


class Loop(SplitBatchNorm2d):
    """Each group by itself; the running statistics are the mean of the groups'."""

    def forward(self, x):
        parts = x.tensor_split(max(1, round(len(x) / self.group_size)))
        means = [self.running_mean.clone() for _ in parts]
        variances = [self.running_var.clone() for _ in parts]
        out = [
            F.batch_norm(part, *running, self.weight, self.bias, True, self.momentum, self.eps)
            for part, *running in zip(parts, means, variances, strict=True)
        ]
        self.running_mean.copy_(torch.stack(means).mean(0))
        self.running_var.copy_(torch.stack(variances).mean(0))
        return torch.cat(out)


@pytest.fixture
def back_end(request, monkeypatch, kernel_launches) -> str:
    """Run a test with torch's operators, and again with Triton's kernels, interpreted."""
    if request.param == "triton":
        request.getfixturevalue("interpreted_triton")
        from moco_transfer.pretrain.split_norm import triton_kernels

        monkeypatch.setattr(operator, "runs_triton", lambda device: True)
        monkeypatch.setattr(triton_kernels, "ROWS", 8)  # several blocks of these small maps
        monkeypatch.setattr(triton_kernels, "CHANNELS", 8)
        monkeypatch.setattr(triton_kernels, "PROGRAMS", 12)
    return request.param


def passes(layer: nn.Module, x, dy):
    """Return the output, the gradients of input, weight and bias, and the running statistics."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(dy)
    return {
        "y": y.detach(),
        "dx": x.grad,
        "dweight": layer.weight.grad,
        "dbias": layer.bias.grad,
        "mean": layer.running_mean,
        "var": layer.running_var,
    }


@pytest.mark.parametrize("back_end", BACK_ENDS, indirect=True)
@pytest.mark.parametrize(
    ("images", "dtype", "memory_format"),
    [
        (10, torch.float32, torch.channels_last),
        (9, torch.bfloat16, torch.channels_last),  # two groups, of 5 and 4
        (8, torch.float32, torch.contiguous_format),
    ],
)
def test_one_operator__equals_each_group_by_itself(
    back_end, images, dtype, memory_format, kernel_launches
):
    torch.manual_seed(0)
    x, dy = torch.randn(2, images, 11, 5, 3)
    x = 3 * x + 30 * torch.randn(11, 1, 1)  # means far from zero
    x, dy = (t.to(dtype).to(memory_format=memory_format) for t in (x, dy))
    layers = [kind(11, group_size=4) for kind in (SplitBatchNorm2d, Loop)]
    weights = torch.rand(2, 11) + 0.5
    for layer in layers:
        layer.weight.data, layer.bias.data = weights.clone()
    ours, loop = (passes(layer, x, dy) for layer in layers)
    tolerance = {"rtol": 2e-5, "atol": 2e-5}
    if dtype == torch.bfloat16:
        tolerance = {"rtol": 2**-7, "atol": 2**-7}
    for name, value in ours.items():
        torch.testing.assert_close(
            value, loop[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert ours["y"].is_contiguous(memory_format=memory_format) and ours["y"].dtype == dtype
    assert layers[0].num_batches_tracked == 1
    uses_triton = back_end == "triton" and memory_format == torch.channels_last
    assert len(kernel_launches) == (6 if uses_triton else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_operator__equals_each_group_by_itself_on_a_gpu(dtype):
    torch.manual_seed(0)
    x, dy = torch.randn(2, 65, 72, 28, 28, device="cuda", dtype=dtype)
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    layers = [kind(72, group_size=8).cuda() for kind in (SplitBatchNorm2d, Loop)]
    ours, loop = (passes(layer, x, dy) for layer in layers)
    tolerance = (
        {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    )
    for name, value in ours.items():
        torch.testing.assert_close(
            value, loop[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert operator.runs_triton(x.device)


class Encoder(nn.Module):
    def __init__(self, norm, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.bn1 = norm(8, group_size=4)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, bias=False)
        self.bn2 = norm(8, group_size=4)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


def losses_of(norm, steps: int = 50) -> tuple[list[float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = MoCo(lambda num_classes: Encoder(norm, num_classes), dim=8, queue_size=32)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), 0.03, momentum=0.9)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        views = torch.randn(2, 8, 3, 12, 12).unbind()
        loss = info_nce(model(*(v.to(memory_format=torch.channels_last) for v in views))[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize(
    "back_end", ["loop", pytest.param("triton", marks=pytest.mark.slow)], indirect=True
)
def test_fifty_steps__have_the_losses_of_the_loop(back_end, kernel_launches):
    (ours, state), (loop, loops_state) = losses_of(SplitBatchNorm2d), losses_of(Loop)
    assert ours == pytest.approx(loop, rel=2e-5)
    assert max(loop) - min(loop) > 1
    for name in (n for n in state if "running" in n):
        torch.testing.assert_close(state[name], loops_state[name], rtol=1e-3, atol=1e-4)
    assert len(kernel_launches) == (0 if back_end == "loop" else 50 * 2 * (3 + 3 + 3))


def test_one_value_for_each_channel__is_an_error():
    with pytest.raises(ValueError, match="more than 1 value"):
        SplitBatchNorm2d(3, group_size=1)(torch.ones(2, 3, 1, 1))


@pytest.mark.slow
def test_triton__kernels_compile_for_gpus(tmp_path):
    """Into machine code for an A100 and an H100; needs no GPU."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 2 * 9
