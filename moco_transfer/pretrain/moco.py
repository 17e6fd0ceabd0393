"""MoCo: contrast a query against one positive key and a queue of negatives.

Shapes in this module:
    N: images on this process    C: feature dimension    K: queue size    W: world size
Distributed:
    ``MoCo.forward`` is collective in training: every process calls it, with equal N.
Source:
    He et al. 2019, arXiv:1911.05722, Sec. 3, Alg. 1; v2: Chen et al. 2020, arXiv:2003.04297.
    Behaviour checked against facebookresearch/moco@7397dfe moco/builder.py (differences: see MoCo).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.distributed import get_rank, get_world_size
from .encoders import add_mlp_head
from .queue import enqueue, new_queue
from .shuffle import draw_permutation, gather_unshuffled, shuffle_rows


def contrastive_logits(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Return (1 + K)-way logits in which class 0 is the positive key.

    Args:
        q: Query features (N, C), rows of unit L2 norm; carries the gradient.
        k: Key features (N, C) of the same images, unit norm, no gradient.
        queue: Negative keys (C, K), unit-norm columns, no gradient.
        temperature: Softmax temperature T > 0, unitless (0.07 in v1, 0.2 in v2).

    Returns:
        Logits (N, 1 + K) in q's dtype and device. The target is 0 for every row.

    Raises:
        ValueError: If the feature dimensions differ or temperature <= 0.

    Reference:
        MoCo, Eq. (1).
    """
    if q.shape[1] != queue.shape[0]:
        raise ValueError(f"Query features have {q.shape[1]} dimensions, the queue {queue.shape[0]}.")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}.")
    l_pos = torch.einsum("nc,nc->n", q, k).unsqueeze(1)  # (N, 1)
    l_neg = torch.einsum("nc,ck->nk", q, queue)  # (N, K)
    return torch.cat([l_pos, l_neg], dim=1) / temperature


def _unit(features: Tensor) -> Tensor:
    """Return the rows scaled to unit L2 norm, in float32 where autocast gave less."""
    return F.normalize(features.float() if features.dtype in (torch.float16, torch.bfloat16) else features, dim=1)


class MoCo(nn.Module):
    """Momentum Contrast with a queue (v1), and with the MLP head of v2.

    The attributes ``encoder_q``, ``encoder_k``, ``queue`` (C, K) and ``queue_ptr`` (1,) are the published checkpoints' state-dict
    keys and stay as they are.

    Differences from the official builder: runs in one process and on any device; any batch size (the queue wraps around);
    shuffling by all-to-all; on one device shuffling goes with SplitBN groups inside the encoders (see ``split_batch_norm``).

    Args:
        encoder_factory: Called with the number of outputs, returns an encoder whose last layer is ``fc``. Called twice.
        dim: Feature dimension (paper: C, 128).
        queue_size: Number of negatives (K, 65536).
        momentum: Share of the old key encoder kept in each step (m, 0.999).
        temperature: Softmax temperature (T, 0.07 in v1, 0.2 in v2).
        mlp: Two-layer head, v2.
        shuffle: Permute the keys' batch over all processes before the key encoder (ShuffleBN).

    Raises:
        ValueError: If momentum is outside [0, 1], or dim, queue_size or temperature is not positive.
    """

    def __init__(
        self,
        encoder_factory: Callable[[int], nn.Module],
        *,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.07,
        mlp: bool = False,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}.")
        if dim < 1 or queue_size < 1 or temperature <= 0:
            raise ValueError(f"dim, queue_size and temperature must be positive, got {dim}, {queue_size}, {temperature}.")
        self.momentum = momentum
        self.temperature = temperature
        self.shuffle = shuffle
        self.encoder_q = encoder_factory(dim)
        self.encoder_k = encoder_factory(dim)
        if mlp:
            add_mlp_head(self.encoder_q)
            add_mlp_head(self.encoder_k)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)  # moves by momentum, not by the gradient
        self.register_buffer("queue", new_queue(dim, queue_size))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    @property
    def queue_size(self) -> int:
        """Number of negatives K."""
        return self.queue.shape[1]

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and targets of the pretext task; in training also moves the key encoder and fills the queue.

        Args:
            im_q: Query images (N, 3, H, W), normalised RGB.
            im_k: Key images (N, 3, H, W), another view of the same pictures in the same order.

        Returns:
            Logits (N, 1 + K), float32 under autocast too, and targets (N,) of zeros, int64. Cross-entropy of the two is Eq. (1).
        """
        # The precision of the encoders is the caller's (autocast); similarities and the softmax are always float32.
        q = _unit(self.encoder_q(im_q))  # queries: (N, C)
        k_all = self._keys(im_k)  # keys of all processes: (W * N, C)
        own = get_rank() * len(q) if self.training else 0
        k = k_all[own : own + len(q)]
        with torch.autocast(q.device.type, enabled=False):
            # The queue is overwritten below, while backward still needs it: l_neg's gradient is taken against this copy.
            logits = contrastive_logits(q, k, self.queue.clone(), temperature=self.temperature)
        if self.training:
            enqueue(self.queue, self.queue_ptr, k_all)
        return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    @torch.no_grad()
    def _keys(self, im_k: Tensor) -> Tensor:
        """Return the keys of all processes in training, of this process alone in evaluation."""
        if not self.training:
            return _unit(self.encoder_k(im_k))
        self._update_key_encoder()
        if not self.shuffle:
            permutation = torch.arange(len(im_k) * get_world_size(), device=im_k.device)
            return gather_unshuffled(_unit(self.encoder_k(im_k)), permutation)
        permutation = draw_permutation(len(im_k), im_k.device)
        return gather_unshuffled(_unit(self.encoder_k(shuffle_rows(im_k, permutation))), permutation)

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        """Set each key parameter to m * key + (1 - m) * query; BN statistics are the key encoder's own. Eq. (2).

        Done at the start of a step, which is the same sequence of updates as Algorithm 1's at its end.
        """
        torch._foreach_lerp_(list(self.encoder_k.parameters()), list(self.encoder_q.parameters()), 1 - self.momentum)
