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

from ..models import add_mlp_head
from ..runtime.distributed import get_rank, get_world_size
from .info_nce import Negatives, contrastive_logits
from .measures import describe_contrast
from .queue import enqueue, new_queue, next_columns
from .shuffle import draw_permutation, gather_unshuffled, shuffle_rows


def unit(features: Tensor) -> Tensor:
    """Return the rows scaled to unit L2 norm, in float32 where autocast gave less."""
    return F.normalize(
        features.float() if features.dtype in (torch.float16, torch.bfloat16) else features, dim=1
    )


class MoCo(nn.Module):
    """Momentum Contrast with a queue (v1), and with the MLP head of v2.

    The attributes ``encoder_q``, ``encoder_k``, ``queue`` (C, K) and ``queue_ptr`` (1,) are the
    published checkpoints' state-dict keys and stay as they are.

    Differences from the official builder: runs in one process and on any device; any batch size
        (the queue wraps around);
    shuffling by all-to-all; on one device shuffling goes with SplitBN groups inside the encoders
    (see ``split_batch_norm``).

    Without BN, W processes with N images each compute what one process with W * N images computes:
        queue, keys and the
    mean of the gradients. With BN they do not, because statistics are those of each process's
    images (or of groups of them), and in reduced precision sums are rounded in another order.

    Args:
        encoder_factory: Called with the number of outputs, returns an encoder whose last layer is
            ``fc``. Called twice.
        dim: Feature dimension (paper: C, 128).
        queue_size: Number of negatives (K, 65536).
        momentum: Share of the old key encoder kept in each step (m, 0.999).
        temperature: Softmax temperature (T, 0.07 in v1, 0.2 in v2).
        mlp: Two-layer head, v2.
        symmetric: Each view is query once and key once; both directions' losses are summed, both
            views' keys enqueued (the official CIFAR-10 demo, facebookresearch/moco branch
            colab-notebook @f736491).
        shuffle: Permute the keys' batch over all processes before the key encoder (ShuffleBN).

    Attributes:
        loss_scale: What the mean cross-entropy of the logits is multiplied by to get the loss: the
            number of directions.
        measured: Detached scalars that describe the last step (see ``measures``).

    Raises:
        ValueError: If momentum is outside [0, 1], or dim, queue_size or temperature is not
            positive.
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
        symmetric: bool = False,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}.")
        if dim < 1 or queue_size < 1 or temperature <= 0:
            raise ValueError(
                f"dim, queue_size and temperature must be positive, got {dim}, {queue_size},"
                f" {temperature}."
            )
        self.momentum = momentum
        self.temperature = temperature
        self.symmetric = symmetric
        self.shuffle = shuffle
        self.loss_scale = 2.0 if symmetric else 1.0
        self.measured: dict[str, Tensor] = {}
        self.encoder_q = encoder_factory(dim)
        self.encoder_k = encoder_factory(dim)
        if mlp:
            add_mlp_head(self.encoder_q)
            add_mlp_head(self.encoder_k)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)  # moves by momentum, not by the gradient
        self.register_buffer("queue", new_queue(dim, queue_size))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        self._waiting: list[Tensor] = []  # keys (W, n, C) of the micro-batches so far

    @property
    def num_negatives(self) -> int:
        """Number of negatives K."""
        return self.queue.shape[1]

    def forward(
        self, im_q: Tensor, im_k: Tensor, micro_batch: int = 0, num_micro_batches: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets of the pretext task; in training also moves the key encoder and
        fills the queue.

        A step may come in micro-batches, each with its own backward (gradient accumulation): the
        key encoder moves before the first, and the keys of all are enqueued after the last, in the
        order they would have in one batch.

        Args:
            im_q: Query images (N, 3, H, W), normalised RGB.
            im_k: Key images (N, 3, H, W), another view of the same images in the same order.
            micro_batch: Number of this part of the step, 0-based.
            num_micro_batches: Parts of the step.

        Returns:
            Logits (N, 1 + K), float32 under autocast too, and targets (N,) of zeros, int64.
            Cross-entropy of the two is Eq. (1). With ``symmetric`` both have 2 N rows: im_q as
            queries first, im_k as queries second.
        """
        if self.training and micro_batch == 0:
            self._update_key_encoder()
            self._waiting = []
        negatives = Negatives(self.queue)
        pairs = [(im_q, im_k), (im_k, im_q)] if self.symmetric else [(im_q, im_k)]
        directions = [self._contrast(queries, keys, negatives) for queries, keys in pairs]
        # Keys of im_q stand before those of im_k, whichever direction used them first.
        keys = torch.cat([keys for _, keys, _ in reversed(directions)], dim=1)
        logits = (
            torch.cat([logits for logits, _, _ in directions])
            if self.symmetric
            else directions[0][0]
        )
        self.measured = {
            name: sum(m[name] for _, _, m in directions) / len(directions)
            for name in directions[0][2]
        }
        if self.training:
            self._waiting.append(keys)
            if micro_batch == num_micro_batches - 1:
                self._enqueue_waiting(negatives)
        return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    def _contrast(
        self, im_q: Tensor, im_k: Tensor, negatives: Negatives
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return logits (N, 1 + K), the keys of all processes (W, N, C), and the measures of both."""
        # The precision of the encoders is the caller's (autocast); similarities and the softmax are
        # always float32.
        q = unit(self.encoder_q(im_q))  # queries: (N, C)
        keys = self._keys(im_k)  # (W, N, C)
        with torch.autocast(q.device.type, enabled=False):
            logits = contrastive_logits(
                q, keys[get_rank() if self.training else 0], negatives, temperature=self.temperature
            )
        return logits, keys, describe_contrast(q, logits, temperature=self.temperature)

    @torch.no_grad()
    def _keys(self, im_k: Tensor) -> Tensor:
        """Return the keys (W, N, C) of all processes in training, (1, N, C) of this process in
        evaluation.
        """
        if not self.training:
            return unit(self.encoder_k(im_k)).unsqueeze(0)
        if not self.shuffle:
            permutation = torch.arange(len(im_k) * get_world_size(), device=im_k.device)
            keys = gather_unshuffled(unit(self.encoder_k(im_k)), permutation)
        else:
            permutation = draw_permutation(len(im_k))
            keys = gather_unshuffled(
                unit(self.encoder_k(shuffle_rows(im_k, permutation))), permutation
            )
        return keys.view(get_world_size(), len(im_k), -1)

    @torch.no_grad()
    def _enqueue_waiting(self, negatives: Negatives) -> None:
        # (W, all micro-batches' n, C) -> rank after rank, as one batch would be. Two directions
        # stand one after the other.
        directions = 2 if self.symmetric else 1
        parts = [
            part
            for d in range(directions)
            for part in (keys.chunk(directions, dim=1)[d] for keys in self._waiting)
        ]
        per_direction = len(self._waiting)
        ordered = [
            torch.cat(parts[d * per_direction : (d + 1) * per_direction], dim=1).flatten(0, 1)
            for d in range(directions)
        ]
        keys = torch.cat(ordered)
        negatives.keep(next_columns(self.queue, self.queue_ptr, len(keys)))
        enqueue(self.queue, self.queue_ptr, keys)
        negatives.overwritten()
        self._waiting = []

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        """Set each key parameter to m * key + (1 - m) * query; BN statistics are the key encoder's
        own. Eq. (2).

        Done at the start of a step, which is the same sequence of updates as Algorithm 1's at its
        end.
        """
        torch._foreach_lerp_(
            list(self.encoder_k.parameters()), list(self.encoder_q.parameters()), 1 - self.momentum
        )
