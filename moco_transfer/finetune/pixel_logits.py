"""What both engines do with the logits of a fully convolutional network: their loss, and classes
of images of any size.

Shapes in this module:
    N: images    C: classes    H, W: image as given to the network, px
    h, w: ceil(H / stride), ceil(W / stride)
Conventions:
    Logit (i, j) belongs to pixel (stride * i, stride * j), the centre of its receptive field.
Source:
    He et al. 2019, arXiv:1911.05722, App. A.5, which follows DeepLab's code (Chen et al. 2017,
    arXiv:1706.05587): logits are enlarged, labels are not reduced, and the loss is the mean over
    the pixels that are not ignored. Crops of 513 or 769 px, multiples of 16 and one more, make the
    rule of enlargement the ``align_corners=True`` of DeepLab and of CVMI-Lab/SlotCon.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..runtime.distributed import get_world_size
from ..runtime.errors import InputError

Sides = tuple[int, int]  # height and width, px


def enlarge(logits: Tensor, size: Sides, *, stride: int) -> Tensor:
    """Return logits (N, C, h, w) for each pixel of an image: (N, C, H, W).

    Bilinear between the pixels that have logits of their own; pixels behind the last of these have
    its logits.
    """
    spanned = [stride * (cells - 1) + 1 for cells in logits.shape[-2:]]
    fine = F.interpolate(logits, size=spanned, mode="bilinear", align_corners=True)
    below, right = (max(0, side - span) for side, span in zip(size, spanned, strict=True))
    if below or right:
        fine = F.pad(fine, (0, right, 0, below), mode="replicate")
    return fine[..., : size[0], : size[1]]


def pixel_loss(logits: Tensor, labels: Tensor, *, stride: int, ignored: int) -> Tensor:
    """Return the mean cross entropy over the pixels of all processes that are not ``ignored``,
    float32 (): for logits (N, C, h, w) and labels int64 (N, H, W). Collective.

    This process's share is multiplied by the number of processes, so that the average over them,
    which DistributedDataParallel takes of gradients, is that of one process with all images. 0
    where every pixel is ignored.
    """
    # Of half types, sums over so many pixels would lose what small gradients add.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    fine = enlarge(logits, (labels.shape[-2], labels.shape[-1]), stride=stride)
    total = F.cross_entropy(fine, labels, ignore_index=ignored, reduction="sum")
    count = (labels != ignored).sum().to(total.dtype)
    if get_world_size() > 1:
        dist.all_reduce(count)
    return total * get_world_size() / count.clamp(min=1)


def check_window(size: int, step: int) -> None:
    """Raise InputError if TEST.SLIDING_WINDOW is not legal; see :func:`image_logits`."""
    if size != 0 and not 1 <= step <= size:
        raise InputError(
            f"TEST.SLIDING_WINDOW has SIZE {size} and STRIDE {step}; expected a side in px and a"
            " step of 1 to the side, or 0 for the whole image."
        )


def image_logits(
    logits_of: Callable[[Tensor], Tensor], image: Tensor, *, stride: int, window: int, step: int
) -> Tensor:
    """Return the logits (1, C, H, W) of an image (1, 3, H, W), whole or window by window.

    ``logits_of`` is the network, from normalised (1, 3, H, W) to (1, C, h, w). ``window`` is the
    side of the windows, ``step`` the distance of their corners, px; the last of a row or column is
    moved back into the image, and where windows overlap their logits are averaged. A window of 0 is
    the whole image. Source: open-mmlab/mmsegmentation 0.x ``slide_inference``.
    """
    height, width = image.shape[-2:]
    if not window:
        return enlarge(logits_of(image), (height, width), stride=stride)
    sums: Tensor | float = 0.0
    counts = image.new_zeros(1, 1, height, width)
    for top in _starts(height, window, step):
        for left in _starts(width, window, step):
            place = (..., slice(top, top + window), slice(left, left + window))
            part = image[place]
            fine = enlarge(logits_of(part), (part.shape[-2], part.shape[-1]), stride=stride)
            if isinstance(sums, float):
                sums = fine.new_zeros(1, fine.shape[1], height, width)
            sums[place] += fine
            counts[place] += 1
    return sums / counts


def _starts(length: int, window: int, step: int) -> list[int]:
    """Return where the windows along a side begin, each once."""
    last = max(0, length - window)
    return [*range(0, last, step), last]


def classes_of(logits: Tensor, size: Sides) -> Tensor:
    """Return the classes int64 (H', W') of the original image, whose ``size`` is (H', W'), from
    logits (1, C, H, W) of the image as given to the network.
    """
    if tuple(logits.shape[-2:]) != tuple(size):
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits[0].argmax(dim=0)
