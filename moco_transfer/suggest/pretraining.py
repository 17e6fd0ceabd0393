"""Rules for MoCo's config: K, m, batch, learning rate, length, crops.

Sources: MoCo (arXiv:1911.05722, Sec. 4), MoCo v2 (arXiv:2003.04297), the official CIFAR-10 demo,
and the authors' answers in facebookresearch/moco issues 15, 17, 36, 47 and 111.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..runtime.errors import InputError
from .facts import Images, Machine
from .values import Choices, power_of_two

_MIN_IMAGES = 16
_CPU_ITERATIONS = 1000
_DEMO_ITERATIONS = 20_000  # of the official CIFAR-10 demo: 200 epochs of 97
_MOST_EPOCHS = 800  # the longest published schedule
_SLOW_ENCODER = 90_000  # iterations from which m = 0.999 is published: 200 epochs of COCO
# GiB an image of 224 px in fp32; 13.1 GiB were measured for 256 of ResNet-50 in bf16.
_GIB = {"resnet18": 0.04, "resnet34": 0.06, "resnet50": 0.1}


def suggest_pretraining(
    images: Images, machine: Machine, given: Mapping[str, Any], output_dir: str
) -> Choices:
    """Return the values of a pre-training config; ``given`` are the user's own, by key.

    Raises:
        InputError: If there are too few images for MoCo, or for the user's batch or queue.
    """
    if images.count < _MIN_IMAGES:
        least = f"MoCo needs at least {_MIN_IMAGES}"
        raise InputError(f"{images.root} has {images.count} images; {least}. Give more images.")
    choices = Choices(given)
    take = choices.take
    take("OUTPUT_DIR", output_dir, "checkpoints and logs")
    take("DATA.ROOT", images.root, images.describe())
    arch, why = ("resnet50", "the paper's") if machine.gpus else ("resnet18", "small: for a CPU")
    arch = take("MODEL.ARCH", arch, why)
    size = _crops(choices, images, machine)
    batch = _batch(choices, images, machine, _GIB.get(arch, 0.3) * (size / 224) ** 2)
    _queue(choices, images.count, batch, _length(choices, images.count // batch, machine))
    lr = take("SOLVER.BASE_LR", 0.03, f"the paper's at 256 images; 0.03 x {batch} / 256 is used")
    take("SOLVER.REFERENCE_BATCH_SIZE", 256, f"the images that the learning rate {lr:g} is for")
    each = batch // machine.processes
    group = min(32, each if machine.gpus > 1 else max(2, each // 2))
    why = "images that share BN statistics, the paper's 32 or fewer: keys need groups to shuffle"
    take("MOCO.BN_GROUP_SIZE", group, why)
    choices.take_fixed("pretrain")
    take("TRAIN.DEVICE", "cuda" if machine.gpus else "cpu", machine.describe())
    take("TRAIN.LOG_PERIOD", max(1, min(50, images.count // batch)), "an epoch, at most 50")
    return choices.finished()


def _crops(choices: Choices, images: Images, machine: Machine) -> int:
    """Choose crops and augmentation; return the crops' side."""
    most, why = (224, "the paper's") if machine.gpus else (96, "a CPU: a fifth of the paper's 224²")
    fits = max(32, images.short_side // 32 * 32)
    if fits < most:
        why = f"the images have {images.short_side} px: larger crops show no more"
    size = choices.take("DATA.IMAGE_SIZE", min(most, fits), why)
    recipe, why = "v2", "MoCo v2: jitter, grey, blur, flip"
    if size < 64:
        recipe, why = "cifar", f"v2 without blur, which would erase what {size} px show"
    elif images.is_grey:
        why += "; on grey images jitter changes brightness and contrast alone"
    choices.take("DATA.AUGMENTATION", recipe, why)
    return int(size)


def _batch(choices: Choices, images: Images, machine: Machine, gib: float) -> int:
    """Choose batch and workers, ``gib`` being the memory of an image; return the batch."""
    n, processes = images.count, machine.processes
    room = int(0.7 * machine.memory / gib) * processes
    most, why = (256.0, "the paper's") if machine.gpus else (64.0, "a CPU: smaller and more steps")
    most, why = min(
        (most, why),
        (n / 8, f"an eighth of {n} images, so that the queue holds several batches"),
        (room, f"{machine.memory:.0f} GiB hold about {room // processes} images a process"),
    )
    if most < 8 * processes:
        most, why = 8 * processes, "8 a process, the fewest for BN"
    batch = power_of_two(most / processes) * processes
    batch = int(choices.take("DATA.BATCH_SIZE_TOTAL", batch, why))
    if batch > n:
        fix = "Use fewer GPUs, or set DATA.BATCH_SIZE_TOTAL lower."
        raise InputError(f"A batch of {batch} is more than the {n} images. {fix}")
    workers, why = 1, "a CPU trains on fewer than one worker decodes"
    if machine.gpus:
        rate, cores = 100 / gib, machine.cpus // processes  # 1000 images/s on ResNet-50 at 224 px
        wanted = math.ceil(rate * (images.decode_ms + 5) / 1000)
        workers = max(2, min(wanted, cores))
        why = f"{images.decode_ms:.0f} ms to decode and 5 for the crops at {rate:.0f} images/s need"
        why += f" {wanted}; a process has {cores} cores"
    choices.take("DATA.NUM_WORKERS", workers, why)
    return batch


def _length(choices: Choices, per_epoch: int, machine: Machine) -> int:
    """Choose the length; return the number of iterations."""
    least, why = _CPU_ITERATIONS, "within an hour on a CPU"
    if machine.gpus:
        paper = 200 * per_epoch
        least, why = max(
            (paper, "the paper's 200 epochs"), (_DEMO_ITERATIONS, "the CIFAR-10 demo's")
        )
    is_short = least < per_epoch and "SOLVER.EPOCHS" not in choices.given
    if is_short or "SOLVER.MAX_ITER" in choices.given:
        least = choices.take("SOLVER.MAX_ITER", least, f"{why}; an epoch has {per_epoch}")
        choices.take("SOLVER.SCHEDULE_BY", "iteration", "the run may end within an epoch")
        return int(least)
    epochs = min(_MOST_EPOCHS, math.ceil(least / per_epoch))
    if epochs == _MOST_EPOCHS:
        why = "the longest published, 800 epochs"
    why = f"{epochs * per_epoch} iterations of {per_epoch} an epoch: {why}"
    epochs = choices.take("SOLVER.EPOCHS", epochs, why)
    period = max(1, epochs // 20)
    choices.take("TRAIN.CHECKPOINT_PERIOD_EPOCHS", period, "twenty in a run; the last two are kept")
    return int(epochs * per_epoch)


def _queue(choices: Choices, n: int, batch: int, iterations: int) -> None:
    size = batch * power_of_two(min(n / 4, 65536) / batch)
    why = "the paper's" if size == 65536 else f"at most a quarter of {n} images"
    size = choices.take("MOCO.QUEUE_SIZE", size, f"K: {why}, a power of two times the batch")
    if size > n:
        fix = f"Set MOCO.QUEUE_SIZE to at most {max(batch, n // 4)}, a quarter of them."
        raise InputError(f"MOCO.QUEUE_SIZE {size} is more than the {n} images. {fix}")
    m, why = 0.999, f"m: the paper's, for {iterations} iterations"
    if iterations < _SLOW_ENCODER:
        m, why = 0.99, f"m: in {iterations} iterations keys must follow sooner than with 0.999"
    choices.take("MOCO.MOMENTUM", m, why)
