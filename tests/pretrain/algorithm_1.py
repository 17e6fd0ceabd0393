"""Algorithm 1 of the paper in plain Python and float64: loops over images, keys and groups, no code
shared with the package.

Also the case that it is compared on: an encoder small enough to write down, with batch statistics,
    and its images.
"""

from __future__ import annotations

import math

import torch
from torch import nn

IMAGES, NUM_STEPS, LR = 8, 20, 0.2
SHAPE = (3, 2, 2)


class BatchNormEncoder(nn.Module):
    """BN over the pixels, a linear layer, tanh, ``fc``."""

    def __init__(self, num_classes: int, norm_layer=nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm_layer(3)
        self.body = nn.Linear(12, 6)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.fc(torch.tanh(self.body(self.norm(x).flatten(1))))


def images_of(step: int) -> torch.Tensor:
    """Return both views (2, IMAGES, 3, 2, 2) of one step."""
    generator = torch.Generator().manual_seed(1000 + step)
    return (
        torch.randn(2, IMAGES, *SHAPE, generator=generator, dtype=torch.float64)
        + torch.arange(IMAGES).view(-1, 1, 1, 1) / 4
    )


def permutation_of(draw: int) -> torch.Tensor:
    """Return the permutation of the ``draw``-th key pass."""
    return torch.randperm(IMAGES, generator=torch.Generator().manual_seed(2000 + draw))


class Reference:
    """Query and key weights, queue, and one step of the algorithm at a time.

    Args:
        model: What to start from; only its tensors are read.
        num_groups: Groups of images with statistics of their own: processes, or SplitBN's groups.
    """

    def __init__(self, model, *, num_groups: int) -> None:
        self.q = {
            name: p.detach().clone().requires_grad_()
            for name, p in model.encoder_q.named_parameters()
        }
        self.k = {name: p.detach().clone() for name, p in model.encoder_k.named_parameters()}
        self.queue = [model.queue[:, j].clone() for j in range(model.queue.shape[1])]
        self.oldest = 0
        self.m, self.t = model.momentum, model.temperature
        self.num_groups = num_groups
        self.draws = 0

    def encode(self, weights, images):
        """Return one unit feature per image; batch statistics are those of consecutive groups."""
        features = []
        size = len(images) // self.num_groups
        for start in range(0, len(images), size):
            group = images[start : start + size]
            channels = []
            for c in range(3):
                pixels = torch.stack([x[c] for x in group])
                mean = pixels.sum() / pixels.numel()
                variance = ((pixels - mean) ** 2).sum() / pixels.numel()
                channels.append(
                    [
                        (x[c] - mean) / (variance + 1e-5) ** 0.5 * weights["norm.weight"][c]
                        + weights["norm.bias"][c]
                        for x in group
                    ]
                )
            for i in range(len(group)):
                x = torch.stack([channels[c][i] for c in range(3)]).flatten()
                hidden = torch.tanh(weights["body.weight"] @ x + weights["body.bias"])
                if "fc.weight" in weights:
                    out = weights["fc.weight"] @ hidden + weights["fc.bias"]
                else:  # the MLP head of v2
                    out = (
                        weights["fc.2.weight"]
                        @ torch.relu(weights["fc.0.weight"] @ hidden + weights["fc.0.bias"])
                        + weights["fc.2.bias"]
                    )
                features.append(out / out.pow(2).sum().sqrt())
        return features

    def keys_of(self, images):
        permutation = permutation_of(self.draws).tolist()
        self.draws += 1
        shuffled = self.encode(self.k, [images[i] for i in permutation])
        keys = [None] * len(images)
        for place, image in enumerate(permutation):
            keys[image] = shuffled[place]
        return keys

    def direction(self, im_q, im_k):
        losses = []
        keys = self.keys_of(im_k)
        for q, k in zip(self.encode(self.q, list(im_q)), keys, strict=True):
            logits = [torch.dot(q, k) / self.t] + [torch.dot(q, n) / self.t for n in self.queue]
            losses.append(-logits[0] + torch.stack([z.exp() for z in logits]).sum().log())
        return sum(losses) / len(losses), keys

    def step(self, im_1, im_2, *, symmetric: bool):
        # The official order: the key encoder moves first, towards the query encoder of the step
        # before.
        for name in self.k:
            self.k[name] = self.m * self.k[name] + (1 - self.m) * self.q[name].detach()
        loss, keys = self.direction(im_1, im_2)
        if symmetric:
            other, keys_1 = self.direction(im_2, im_1)
            loss, keys = loss + other, keys_1 + keys
        gradients = torch.autograd.grad(loss, list(self.q.values()))
        for p, gradient in zip(self.q.values(), gradients, strict=True):
            p.data -= LR * gradient
        for key in keys:
            self.queue[self.oldest] = key.detach()
            self.oldest = (self.oldest + 1) % len(self.queue)
        return loss.item()

    def run(self, *, symmetric: bool) -> list[float]:
        return [self.step(*images_of(step), symmetric=symmetric) for step in range(NUM_STEPS)]


def build(moco_class, norm_layer, *, mlp: bool, symmetric: bool):
    """Return the model under test, float64; the same on every process."""
    torch.manual_seed(0)
    return moco_class(
        lambda num_classes: BatchNormEncoder(num_classes, norm_layer),
        dim=5,
        queue_size=21,  # no multiple of 8 or 16: it wraps around inside a batch
        momentum=0.9,
        temperature=0.2,
        mlp=mlp,
        symmetric=symmetric,
    ).double()


def assert_equal(
    model_state: dict[str, torch.Tensor],
    losses: list[float],
    reference: Reference,
    expected: list[float],
) -> None:
    """Losses, both encoders and the queue agree to rounding in float64."""
    assert all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(losses, expected, strict=True)), (
        losses,
        expected,
    )
    for prefix, weights in (("encoder_q.", reference.q), ("encoder_k.", reference.k)):
        for name, value in weights.items():
            torch.testing.assert_close(
                model_state[prefix + name], value.detach(), atol=1e-9, rtol=1e-8
            )
    torch.testing.assert_close(
        model_state["queue"], torch.stack(reference.queue, 1), atol=1e-9, rtol=1e-8
    )
    assert int(model_state["queue_ptr"]) == reference.oldest
