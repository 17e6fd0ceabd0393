"""MoCo v2 written the plain way, to which the other tools/bench_*.py compare.

The step is the paper's Algorithm 1: float32, NCHW, a Python loop for the momentum update, all
logits concatenated, a copy of the queue, SGD with torch's defaults. The chain is torchvision's
transforms on PIL images with the paper's parameters, twice for two crops. Both run in a process of
their own (OwnProcess), because ours changes how its process keeps freed memory (runtime/device.py).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Blur:
    """Gaussian blur of SimCLR, radius in px drawn from U(0.1, 2), by PIL."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the blurred image."""
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def published_chain(size: int):
    """Return the published v2 transforms."""
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([Blur()], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


class PublishedMoCo(nn.Module):
    """MoCo v2 (arXiv:2003.04297) on one device, from the paper's Algorithm 1.

    Args:
        arch: A torchvision ResNet.
        queue_size: K.
    """

    def __init__(
        self,
        arch: str,
        *,
        queue_size: int,
        dim: int = 128,
        momentum: float = 0.999,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.encoder_q, self.encoder_k = (self._encoder(arch, dim) for _ in range(2))
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data.copy_(q.data)
            k.requires_grad = False
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @staticmethod
    def _encoder(arch: str, dim: int) -> nn.Module:
        encoder = getattr(torchvision.models, arch)(num_classes=dim)
        width = encoder.fc.in_features
        encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), encoder.fc)
        return encoder

    def forward(self, im_q: Tensor, im_k: Tensor) -> Tensor:
        """Return the loss of one step; moves the key encoder and the queue."""
        q = F.normalize(self.encoder_q(im_q), dim=1)  # NxC
        with torch.no_grad():
            for param_q, param_k in zip(
                self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True
            ):
                param_k.data = param_k.data * self.momentum + param_q.data * (1.0 - self.momentum)
            k = F.normalize(self.encoder_k(im_k), dim=1)
        l_pos = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)  # Nx1
        l_neg = torch.einsum("nc,ck->nk", [q, self.queue.clone().detach()])  # NxK
        logits = torch.cat([l_pos, l_neg], dim=1) / self.temperature
        labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
        loss = F.cross_entropy(logits, labels)
        with torch.no_grad():
            start = int(self.queue_ptr)
            self.queue[:, start : start + len(k)] = k.T
            self.queue_ptr[0] = (start + len(k)) % self.queue.shape[1]
        return loss


class PublishedStep:
    """One iteration: forward, backward, SGD (lr 0.03, momentum 0.9, weight decay 1e-4), and the two
    numbers that are logged.

    Args:
        arch: A torchvision ResNet.
        queue_size: K.
        lr: Learning rate.
        device: Where it runs.
    """

    def __init__(
        self, arch: str, *, queue_size: int, lr: float = 0.03, device: str = "cpu"
    ) -> None:
        self.model = PublishedMoCo(arch, queue_size=queue_size).to(device).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-4)

    def __call__(self, im_q: Tensor, im_k: Tensor) -> float:
        """Take the step on normalised float images (N, 3, H, W); returns the loss."""
        loss = self.model(im_q, im_k)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class OwnProcess:
    """A function in a process of its own, which sleeps between calls; a context manager.

    Args:
        make: Called in that process with the other arguments; returns the function. It must be
            defined at the top of a module, because it is pickled by name.
        threads: Number of torch's threads there.
    """

    def __init__(self, make: Callable[..., Callable], *args: Any, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(make, args, threads, theirs), daemon=False
        )  # a daemon could have no data workers
        self.process.start()
        theirs.close()  # else the end of the process could not be seen

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.process.join()

    def __call__(self, *args: Any) -> Any:
        """Return the function's result; EOFError or ConnectionResetError if its process died."""
        self.connection.send(args)
        return self.connection.recv()


def _serve(make: Callable[..., Callable], args: tuple, threads: int, connection: Any) -> None:
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # as the official script has it, and our trainer
    function = make(*args)
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            connection.send(function(*connection.recv()))
