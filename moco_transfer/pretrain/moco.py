"""MoCo: contrast a query with one positive key and a queue of negative keys. Algorithm 1.

Shapes in this module:
    N: images on this process    W: processes    C: feature dimension    K: queue size
Distributed:
    Every process calls ``forward``, with equal N.
Source:
    He et al. 2019, arXiv:1911.05722, Sec. 3, Alg. 1; v2: Chen et al. 2020, arXiv:2003.04297.
    Behaviour checked against facebookresearch/moco@7397dfe moco/builder.py (differences: see MoCo).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import add_mlp_head
from ..runtime.distributed import all_gather_rows, get_rank, get_world_size
from .info_nce import contrastive_logits, enqueue, info_nce, unit
from .shuffle import draw_permutation, gather_unshuffled, shuffle_rows
from .watch import describe_contrast


class MoCo(nn.Module):
    """Momentum Contrast with a queue (v1), and with the MLP head of v2.

    The attributes ``encoder_q``, ``encoder_k``, ``queue`` (C, K) and ``queue_ptr`` (1,) are the
    published checkpoints' state-dict keys and must not change.

    Differences from the official builder: one process and any device will do, the queue takes any
    batch size, and images are shuffled by all-to-all. On one device shuffling needs SplitBN in the
    encoders (``shuffle.py``). As there, the key encoder moves at the start of a step, which is the
    same sequence of updates as Algorithm 1's at its end.

    Args:
        encoder_factory: Called twice with ``num_classes=dim``; returns an encoder whose last layer
            is ``fc``, such as ``torchvision.models.resnet50``.
        dim: Feature dimension C.
        queue_size: Number of negatives K.
        momentum: Share m of the old key encoder that each step keeps.
        temperature: Softmax temperature T (0.07 in v1, 0.2 in v2).
        mlp: Two-layer head, v2.
        symmetric: ``loss`` is the sum of both directions, each view query once and key once (the
            official CIFAR-10 demo, facebookresearch/moco branch colab-notebook @f736491).
        shuffle: Permute the keys' batch over all processes before the key encoder (ShuffleBN).

    Attributes:
        loss_scale: Directions whose losses are summed.
        measured: Detached scalars of the last forward pass (``watch.describe_contrast``).
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
        encoder_factory: Callable[..., nn.Module],
        *,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.07,
        mlp: bool = False,
        symmetric: bool = False,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1 or min(dim, queue_size, temperature) <= 0:
            raise ValueError(
                f"momentum {momentum} must be in [0, 1], and dim {dim}, queue_size {queue_size} and"
                f" temperature {temperature} positive."
            )
        self.momentum, self.temperature = momentum, temperature
        self.symmetric, self.shuffle = symmetric, shuffle
        self.loss_scale = 2 if symmetric else 1
        self.measured: dict[str, Tensor] = {}
        self.encoder_q = encoder_factory(num_classes=dim)
        self.encoder_k = encoder_factory(num_classes=dim)
        if mlp:
            add_mlp_head(self.encoder_q)
            add_mlp_head(self.encoder_k)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)  # moves by momentum, not by the gradient
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        self._step_keys: list[Tensor] | None = None  # a list between begin_step and end_step

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and targets of the pretext task; one step of Algorithm 1 up to the loss.

        The key encoder moves and the keys are enqueued. Between ``begin_step`` and ``end_step``
        these two do it, once for all forward passes of the step.

        Args:
            im_q: Query images (N, 3, H, W), normalised RGB.
            im_k: Key images (N, 3, H, W), another view of the same images in the same order.

        Returns:
            Logits (N, 1 + K), float32 under autocast too, and targets (N,) of zeros, int64. Their
            cross-entropy is Eq. (1).
        """
        q = unit(self.encoder_q(im_q))  # queries: (N, C)
        with torch.no_grad():
            if self._step_keys is None:
                self._momentum_update()  # Eq. (2)
            k_all = self._encode_keys_shuffled(im_k)  # keys of all processes: (W * N, C)
        k = k_all.view(-1, *q.shape)[get_rank()]  # own keys: (N, C)

        # l_pos = einsum("nc,nc->n", q, k)[:, None]: (N, 1)
        # l_neg = einsum("nc,ck->nk", q, queue): (N, K)
        # logits = cat([l_pos, l_neg], dim=1) / T: (N, 1 + K), written in one buffer
        logits = contrastive_logits(q, k, self.queue, temperature=self.temperature)
        target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)  # positive: 0

        if self._step_keys is None:
            enqueue(self.queue, self.queue_ptr, k_all)
        else:
            self._step_keys.append(k_all)
        self.measured = describe_contrast(q, logits, temperature=self.temperature)
        return logits, target

    def loss(
        self, views: list[Tensor], labels: Tensor, index: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of two views of (a micro-batch of) images, and its measures.

        To be called between ``begin_step`` and ``end_step``. ``labels`` and ``index`` are not used.
        """
        im_1, im_2 = views
        loss, measured = info_nce(self(im_1, im_2)[0]), self.measured
        if self.symmetric:
            loss = loss + info_nce(self(im_2, im_1)[0])
            measured = {name: (measured[name] + self.measured[name]) / 2 for name in measured}
        return loss, measured

    def begin_step(self, index: Tensor) -> None:
        """Begin an optimiser step of one or more calls of ``loss``: the key encoder moves once."""
        self._momentum_update()
        self._step_keys = []

    def end_step(self) -> None:
        """Enqueue the step's keys in the order that one batch would have; after the last loss."""
        passes, self._step_keys = self._step_keys or [], None
        by_rank = [keys.unflatten(0, (get_world_size(), -1)) for keys in passes]
        # Symmetric: the second call encodes the keys of the first view, which come first.
        directions = [by_rank[d :: self.loss_scale] for d in reversed(range(self.loss_scale))]
        ordered = [torch.cat(parts, dim=1).flatten(0, 1) for parts in directions]
        enqueue(self.queue, self.queue_ptr, torch.cat(ordered))

    @torch.no_grad()
    def _momentum_update(self) -> None:
        """Set each key parameter to m * key + (1 - m) * query; BN statistics stay the keys' own."""
        torch._foreach_lerp_(
            list(self.encoder_k.parameters()), list(self.encoder_q.parameters()), 1 - self.momentum
        )

    def _encode_keys_shuffled(self, im_k: Tensor) -> Tensor:
        """Return the keys of all processes (W * N, C), in the order of the images."""
        if not self.shuffle:
            return all_gather_rows(unit(self.encoder_k(im_k)))
        permutation = draw_permutation(len(im_k))
        shuffled = unit(self.encoder_k(shuffle_rows(im_k, permutation)))
        return gather_unshuffled(shuffled, permutation)
