"""Triton kernels of ``operator.py``: three for a forward pass, three for a backward pass.

The first kernel of a pass reads the activations in slices and leaves each slice's sums, the second
adds up the slices of a group, the third reads the activations again and writes the result. Sums do
not depend on the order in which programs run: equal inputs give equal bits.

Shapes in this module:
    N: images    G: groups    P: slices of a group    C: channels    pixels: H * W
    Activations are channels-last, (N * pixels, C) in memory; statistics are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 2048  # of a kernel that reads activations: several on each processor of a large GPU
MOST_SLICES = 256
ROWS, CHANNELS, CHANNELS_ADDED = 64, 64, 8  # of the blocks that a program holds


@triton.jit
def _group(g, N, G, pixels):
    # First row and number of rows of group g; the first N % G groups have an image more.
    small, larger = N // G, N % G
    start = (g * small + tl.minimum(g, larger)).to(tl.int64) * pixels
    return start, (small + tl.where(g < larger, 1, 0)) * pixels


@triton.jit
def _slice(N, G, pixels, LENGTH: tl.constexpr):
    # First row of this program's slice, and the row behind its group.
    start, rows = _group(tl.program_id(2), N, G, pixels)
    return start + tl.program_id(0) * LENGTH, start + rows


@triton.jit
def _block(row, end, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    # Places of a block (ROWS, CHANNELS) from `row` on, and which of them exist.
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rows = row + tl.arange(0, ROWS)
    return rows[:, None] * C + c[None, :], (rows < end)[:, None] & (c < C)[None, :]


@triton.jit
def _moments(
    x, mean, squares, N, pixels, P, C,
    G: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # Mean, and sum of squared distances from it, of a slice: (G, P, C).
    first, end = _slice(N, G, pixels, STEPS * ROWS)
    so_far = tl.zeros([CHANNELS], tl.float32)
    spread = tl.zeros([CHANNELS], tl.float32)
    for i in range(STEPS):
        row = first + i * ROWS
        places, exist = _block(row, end, C, ROWS, CHANNELS)
        values = tl.load(x + places, mask=exist, other=0.0).to(tl.float32)
        count = tl.maximum(tl.minimum(end - row, ROWS), 0).to(tl.float32)
        of_block = tl.sum(values, 0) / tl.maximum(count, 1.0)
        apart = tl.where(exist, values - of_block[None, :], 0.0)
        step = of_block - so_far
        # Chan et al. 1979: two sets' moments from each one's.
        share = count / tl.maximum(i * ROWS + count, 1.0)
        spread += tl.sum(apart * apart, 0) + step * step * (i * ROWS * share)
        so_far += step * share
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    place = (tl.program_id(2) * P + tl.program_id(0)) * C + c
    tl.store(mean + place, so_far, mask=c < C)
    tl.store(squares + place, spread, mask=c < C)


@triton.jit
def _add_moments(
    part_mean, part_squares, mean, inverse_std, running, N, pixels, P, C, eps, LENGTH,
    G: tl.constexpr, SLICES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.arange(0, SLICES)
    exist = (p < P)[:, None] & (c < C)[None, :]
    mean_of_groups = tl.zeros([CHANNELS], tl.float32)
    variance_of_groups = tl.zeros([CHANNELS], tl.float32)
    for g in range(G):
        start, rows = _group(g, N, G, pixels)
        count = tl.minimum(tl.maximum(rows - p * LENGTH, 0), LENGTH).to(tl.float32)[:, None]
        places = (g * P + p)[:, None] * C + c[None, :]
        means = tl.load(part_mean + places, mask=exist, other=0.0)
        squares = tl.load(part_squares + places, mask=exist, other=0.0)
        total = rows.to(tl.float32)
        of_group = tl.sum(means * count, 0) / total
        apart = means - of_group[None, :]
        sum_of_squares = tl.sum(tl.where(exist, squares + apart * apart * count, 0.0), 0)
        place = g * C + c
        tl.store(mean + place, of_group, mask=c < C)
        tl.store(inverse_std + place, 1.0 / tl.sqrt(sum_of_squares / total + eps), mask=c < C)
        mean_of_groups += of_group / G
        variance_of_groups += sum_of_squares / (total - 1.0) / G
    tl.store(running + c, mean_of_groups, mask=c < C)
    tl.store(running + C + c, variance_of_groups, mask=c < C)


@triton.jit
def _normalise(
    x, weight, bias, mean, inverse_std, y, N, pixels, P, C,
    G: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    first, end = _slice(N, G, pixels, STEPS * ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    place = tl.program_id(2) * C + c
    centre = tl.load(mean + place, mask=c < C, other=0.0)[None, :]
    by = tl.load(inverse_std + place, mask=c < C, other=0.0)[None, :]
    by *= tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    plus = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    for i in range(STEPS):
        row = first + i * ROWS
        places, exist = _block(row, end, C, ROWS, CHANNELS)
        values = tl.load(x + places, mask=exist, other=0.0).to(tl.float32)
        tl.store(y + places, (values - centre) * by + plus, mask=exist)


@triton.jit
def _gradient_sums(
    dy, x, mean, inverse_std, part_bias, part_weight, N, pixels, P, C,
    G: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # Sums of dy, and of dy times the normalised x, of a slice: (G, P, C).
    first, end = _slice(N, G, pixels, STEPS * ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    centre = tl.load(mean + tl.program_id(2) * C + c, mask=c < C, other=0.0)[None, :]
    by = tl.load(inverse_std + tl.program_id(2) * C + c, mask=c < C, other=0.0)
    of_bias = tl.zeros([CHANNELS], tl.float32)
    of_weight = tl.zeros([CHANNELS], tl.float32)
    for i in range(STEPS):
        row = first + i * ROWS
        places, exist = _block(row, end, C, ROWS, CHANNELS)
        gradient = tl.load(dy + places, mask=exist, other=0.0).to(tl.float32)
        values = tl.load(x + places, mask=exist, other=0.0).to(tl.float32)
        of_bias += tl.sum(gradient, 0)
        of_weight += tl.sum(gradient * (values - centre), 0)
    place = (tl.program_id(2) * P + tl.program_id(0)) * C + c
    tl.store(part_bias + place, of_bias, mask=c < C)
    tl.store(part_weight + place, of_weight * by, mask=c < C)


@triton.jit
def _add_gradients(
    part_bias, part_weight, of_groups, grad_weight, grad_bias, P, C,
    G: tl.constexpr, SLICES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.arange(0, SLICES)
    exist = (p < P)[:, None] & (c < C)[None, :]
    all_bias = tl.zeros([CHANNELS], tl.float32)
    all_weight = tl.zeros([CHANNELS], tl.float32)
    for g in range(G):
        places = (g * P + p)[:, None] * C + c[None, :]
        of_bias = tl.sum(tl.load(part_bias + places, mask=exist, other=0.0), 0)
        of_weight = tl.sum(tl.load(part_weight + places, mask=exist, other=0.0), 0)
        tl.store(of_groups + g * C + c, of_bias, mask=c < C)
        tl.store(of_groups + (G + g) * C + c, of_weight, mask=c < C)
        all_bias += of_bias
        all_weight += of_weight
    tl.store(grad_bias + c, all_bias, mask=c < C)
    tl.store(grad_weight + c, all_weight, mask=c < C)


@triton.jit
def _input_gradient(
    dy, x, weight, mean, inverse_std, of_groups, dx, N, pixels, P, C,
    G: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    first, end = _slice(N, G, pixels, STEPS * ROWS)
    start, rows = _group(tl.program_id(2), N, G, pixels)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    place, count = tl.program_id(2) * C + c, rows.to(tl.float32)
    centre = tl.load(mean + place, mask=c < C, other=0.0)[None, :]
    by = tl.load(inverse_std + place, mask=c < C, other=0.0)[None, :]
    factor = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)[None, :] * by
    of_bias = tl.load(of_groups + place, mask=c < C, other=0.0)[None, :] / count
    of_weight = tl.load(of_groups + G * C + place, mask=c < C, other=0.0)[None, :] / count
    for i in range(STEPS):
        row = first + i * ROWS
        places, exist = _block(row, end, C, ROWS, CHANNELS)
        gradient = tl.load(dy + places, mask=exist, other=0.0).to(tl.float32)
        values = tl.load(x + places, mask=exist, other=0.0).to(tl.float32)
        normalised = (values - centre) * by
        tl.store(dx + places, (gradient - of_bias - normalised * of_weight) * factor, mask=exist)


class _Layout:
    """The sizes that the kernels take, and their grids."""

    def __init__(self, x: Tensor, groups: int) -> None:
        (n, channels), pixels = x.shape[:2], x.shape[2] * x.shape[3]
        rows, blocks = triton.cdiv(n, groups) * pixels, triton.cdiv(channels, CHANNELS)
        slices = min(MOST_SLICES, triton.cdiv(PROGRAMS, groups * blocks))
        steps = triton.next_power_of_2(triton.cdiv(rows, ROWS * slices))
        slices = triton.cdiv(rows, ROWS * steps)
        self.each = slices, blocks, groups
        self.sizes = n, pixels, slices, channels
        self.block = {"G": groups, "STEPS": steps, "ROWS": ROWS, "CHANNELS": CHANNELS}
        self.length = steps * ROWS
        self.adding = (triton.cdiv(channels, CHANNELS_ADDED),)
        self.added = {"G": groups, "SLICES": triton.next_power_of_2(slices)}
        self.added |= {"CHANNELS": CHANNELS_ADDED}
        self.parts = 2, groups, slices, channels


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float,
    y: Tensor, mean: Tensor, inverse_std: Tensor, running: Tensor,
) -> None:  # fmt: skip
    """Write ``operator.split_batch_norm``'s results into the last four arguments."""
    on = _Layout(x, len(mean))
    parts, found = mean.new_empty(on.parts), (mean, inverse_std, running)
    _moments[on.each](x, *parts, *on.sizes, **on.block)
    _add_moments[on.adding](*parts, *found, *on.sizes, eps, on.length, **on.added)
    _normalise[on.each](x, weight, bias, mean, inverse_std, y, *on.sizes, **on.block)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor,
    dx: Tensor, grad_weight: Tensor, grad_bias: Tensor,
) -> None:  # fmt: skip
    """Write ``operator.split_batch_norm_backward``'s results into the last three arguments."""
    on = _Layout(x, len(mean))
    parts, of_groups = mean.new_empty(on.parts), mean.new_empty(2, *mean.shape)
    found = of_groups, grad_weight, grad_bias
    _gradient_sums[on.each](dy, x, mean, inverse_std, *parts, *on.sizes, **on.block)
    _add_gradients[on.adding](*parts, *found, *on.sizes[2:], **on.added)
    _input_gradient[on.each](dy, x, weight, mean, inverse_std, of_groups, dx, *on.sizes, **on.block)
