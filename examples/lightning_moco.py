"""MoCo v2 in Lightning, with the order, the views and the losses of ``moco-transfer pretrain``.

    pip install 'moco-transfer[lightning]'
    python examples/lightning_moco.py images --output out/lightning --steps 180

One pass over the loader is the whole run. At the end ``moco.pth`` has the names of the official
checkpoints. ``convert`` takes it, and Lightning's own with ``--from state_dict.moco.encoder_q.``
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from moco_transfer.data.views.order import EpochBatches
from moco_transfer.data.views.two_views import TwoViews, collate
from moco_transfer.pretrain import MoCo
from moco_transfer.pretrain.info_nce import info_nce
from moco_transfer.pretrain.shuffle import SplitBatchNorm2d
from moco_transfer.runtime.seed import seed_everything


class LightningMoCo(lightning.LightningModule):
    """MoCo v2 with a ResNet of torchvision; the defaults are those of ``moco_v2_R_18_96px``.

    Args:
        images: What it learns from.
        arch: Name of a ResNet of torchvision.
        queue_size: Number of negatives K.
        batch_size: Images per step over all processes.
        group_size: Images whose BN statistics are taken together.
        lr: Learning rate, which stays.
        seed: Of weights, order and permutations; that of the views is in ``images``.
        num_workers: Data workers per process.
    """

    def __init__(
        self,
        images: TwoViews,
        *,
        arch: str = "resnet18",
        queue_size: int = 256,
        batch_size: int = 64,
        group_size: int = 32,
        lr: float = 0.0075,
        seed: int = 0,
        num_workers: int = 1,
    ) -> None:
        super().__init__()
        self.images, self.batch_size, self.lr = images, batch_size, lr
        self.seed, self.num_workers = seed, num_workers
        seed_everything(seed, "weights")
        norm = partial(SplitBatchNorm2d, group_size=group_size)
        encoder = partial(getattr(torchvision.models, arch), norm_layer=norm)
        self.moco = MoCo(encoder, queue_size=queue_size, momentum=0.99, temperature=0.2, mlp=True)
        self.to(memory_format=torch.channels_last)

    def train_dataloader(self) -> DataLoader:
        """Return the batches of this process, to the last step."""
        steps_per_epoch = len(self.images) // self.batch_size
        order = EpochBatches(
            len(self.images),
            batch_size_total=self.batch_size,
            epochs=math.ceil(self.trainer.max_steps / steps_per_epoch),
            seed=self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        how: dict[str, Any] = {"num_workers": self.num_workers, "collate_fn": collate}
        return DataLoader(self.images, batch_sampler=order, **how)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, _: int) -> Any:
        """Return the two views, with their colours, on the device."""
        return self.images.finish(batch, device)

    def training_step(self, views: tuple[Tensor, Tensor]) -> Tensor:
        """Return InfoNCE of a batch; the processes draw the same permutation."""
        seed_everything(self.seed, "iteration", self.global_step)
        loss = info_nce(self.moco(*views)[0])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD on the query encoder, as in the official code."""
        parameters = self.moco.encoder_q.parameters()
        how: dict[str, Any] = {"fused": True} if self.device.type == "cpu" else {}
        return torch.optim.SGD(parameters, self.lr, momentum=0.9, weight_decay=1e-4, **how)


def main() -> None:
    """Pre-train on a folder of images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", help="a folder of images")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--size", type=int, default=96, help="side of a view, px")
    args = parser.parse_args()
    module = LightningMoCo(TwoViews(args.images, size=args.size))
    several = torch.cuda.device_count() > 1
    trainer = lightning.Trainer(
        max_steps=args.steps,
        default_root_dir=args.output,
        strategy=DDPStrategy(broadcast_buffers=False) if several else "auto",
        use_distributed_sampler=False,  # EpochBatches gives each process its part
    )
    trainer.fit(module)
    if trainer.is_global_zero:
        state = {"state_dict": module.moco.state_dict(), "arch": "resnet18"}
        torch.save(state, args.output / "moco.pth")


if __name__ == "__main__":
    main()
