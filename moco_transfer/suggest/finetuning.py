"""Rules for the detector's config: input size, anchors, batch, learning rate, length.

Sources: MoCo (arXiv:1911.05722, Sec. 4.2, A.1) with its detection configs, its authors' answers in
facebookresearch/moco issues 11, 23, 34 and 40, and Detectron2's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .facts import Machine, Objects
from .values import Choices, power_of_two

_DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101}
_GIB = 2.3  # an image of 800 px on R50-FPN with SyncBN (Detectron2's model zoo: 5.5 GiB for two)
_CPU_ITERATIONS = 500
_ANCHORS = 8, 64  # bounds of the smallest anchor, px


def suggest_finetuning(
    objects: Objects, machine: Machine, arch: str, given: Mapping[str, Any], output_dir: str
) -> Choices:
    """Return the values of a detection config for the pre-trained encoder ``arch``; ``given`` are
    the user's own, by key.
    """
    choices, has_basic_blocks = Choices(given), arch in ("resnet18", "resnet34")
    take = choices.take
    take("OUTPUT_DIR", output_dir, "checkpoints, log and results.json")
    take("DATASETS.TRAIN", objects.train, objects.describe())
    why = "not trained on"
    if set(objects.train) & set(objects.test):
        why = "no other set is given; AP on training images only shows that the run works"
    take("DATASETS.TEST", objects.test, why)
    choices.take_fixed("finetune")
    choices.take_fixed("gpu" if machine.gpus else "cpu")
    if machine.gpus and objects.has_masks:
        choices.take_fixed("mask")
    if objects.is_lvis:
        choices.take_fixed("lvis")
    take("MODEL.DEVICE", "cuda" if machine.gpus else "cpu", machine.describe())
    take("MODEL.RESNETS.DEPTH", _DEPTHS.get(arch, 50), f"{arch} is pre-trained")
    if has_basic_blocks:
        take("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, f"{arch} has basic blocks")
    side = _input(choices, objects, machine)
    _anchors(choices, objects, side)
    _heads(choices, objects, machine)
    gib = _GIB * (0.5 if has_basic_blocks else 1) * (side / 800) ** 2
    _length(choices, objects.images, _batch(choices, machine, gib), machine)
    return choices.finished()


def _input(choices: Choices, objects: Objects, machine: Machine) -> int:
    """Choose the sizes of the input; return the shorter side at test time."""
    most = max(64, round(2.5 * objects.short_side / 32) * 32)
    if machine.gpus:
        side, why = 800, "the paper's"
        factors: tuple[float, ...] = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)
        of = "80 to 100 %, the paper's for COCO"
        if objects.images < 50_000:
            factors, of = (0.6, 0.68, 0.76, 0.84, 0.92, 1.0), "60 to 100 %, the paper's for VOC"
    else:
        small = objects.sides[1]
        side = min(320, max(160, math.ceil(16 / small / 32) * 32))
        why = f"a CPU; small objects have {small * side:.0f} px"
        factors, of = (0.9, 1.0, 1.1), "the test size and 10 % around it"
    if side > most:
        side, why = most, f"2.5 times the images' {objects.short_side} px: more shows no more"
    side = choices.take("INPUT.MIN_SIZE_TEST", side, why)
    sizes = list(dict.fromkeys(round(side * factor / 16) * 16 for factor in factors))
    choices.take("INPUT.MIN_SIZE_TRAIN", sizes, of)
    for key in ("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"):
        choices.take(key, round(side * 1333 / 800), "1333 for 800, the paper's")
    return int(side)


def _anchors(choices: Choices, objects: Objects, side: int) -> None:
    low, _, high = (share * side for share in objects.sides)
    base = min(_ANCHORS[1], max(_ANCHORS[0], 2 ** round(math.log2(low))))
    while base < _ANCHORS[1] and 16 * base * math.sqrt(2) < high:
        base *= 2
    why = f"90 % of the objects have {low:.0f} to {high:.0f} px at this input size"
    choices.take("MODEL.ANCHOR_GENERATOR.SIZES", [[base << level] for level in range(5)], why)
    ratios, why = [0.5, 1.0, 2.0], "Detectron2's"
    if objects.elongated > 0.3:
        ratios, why = [0.25, 0.5, 1.0, 2.0, 4.0], "Detectron2's and 1:4"
    why += f"; {objects.elongated:.0%} of the boxes are longer than 3:1"
    choices.take("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [ratios], why)


def _heads(choices: Choices, objects: Objects, machine: Machine) -> None:
    many, most = objects.per_image
    choices.take("MODEL.ROI_HEADS.NUM_CLASSES", objects.classes, "the data's")
    rois, why = 512, "Detectron2's"
    if not machine.gpus:
        rois = min(512, max(64, 2 * power_of_two(4 * many - 1)))
        why = f"a quarter may be objects, and 90 % of the images have at most {many}"
    choices.take("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", rois, why)
    found = max(100, math.ceil(1.5 * most / 100) * 100)
    why = f"COCO's 100, or 1.5 times the most objects in an image, {most}"
    if objects.is_lvis:
        found, why = 300, "what LVIS counts"
    choices.take("TEST.DETECTIONS_PER_IMAGE", found, why)
    regions = max(1000 if machine.gpus else 300, 3 * found)
    choices.take("MODEL.RPN.POST_NMS_TOPK_TEST", regions, "at least three for each detection")


def _batch(choices: Choices, machine: Machine, gib: float) -> int:
    """Choose batch and learning rate, ``gib`` being the memory of an image; return the batch."""
    room = max(1, int((0.8 * machine.memory - 1) / gib))
    most, why = 4, "a CPU: smaller and more steps"
    base, source = 0.04, "a short run: twice the paper's"
    if machine.gpus:
        most, why = max(1, 16 // machine.processes), "the paper's 16 in all"
        base, source = 0.02, "the paper's"
    if room < most:
        why = f"{machine.memory:.0f} GiB hold about {room} images a process"
    batch = power_of_two(min(room, most)) * machine.processes
    batch = choices.take("SOLVER.IMS_PER_BATCH", batch, why)
    lr = float(f"{base * batch / 16:.6g}")
    choices.take("SOLVER.BASE_LR", lr, f"{source} for 16 images: {base} x {batch} / 16")
    what = "GPUs that this schedule is for; it is scaled to others"
    choices.take("SOLVER.REFERENCE_WORLD_SIZE", machine.gpus, what if machine.gpus else "as it is")
    return int(batch)


def _length(choices: Choices, n: int, batch: int, machine: Machine) -> None:
    # The published lengths lie on this line: 9k for 5,011 images, 24k for 16,551, 90k for 118,287.
    wanted = 9000 * (n / 5011) ** 0.73 * 16 / batch
    digits = 10 ** max(0, int(math.log10(wanted)) - 1)
    length, why = round(wanted / digits) * digits, "between VOC's 9k and COCO's 90k by images"
    if not machine.gpus and length > _CPU_ITERATIONS:
        length, why = _CPU_ITERATIONS, f"minutes on a CPU; {length} by the published lengths"
    take = choices.take
    length = take("SOLVER.MAX_ITER", length, f"{length * batch / n:.1f} epochs: {why}")
    shares, why = ((3 / 4, 11 / 12), "VOC's 3/4 and 11/12") if length >= 5000 else ((0.8,), "4/5")
    take("SOLVER.STEPS", [round(length * share) for share in shares], f"{why} of the run")
    take("SOLVER.WARMUP_ITERS", min(1000, max(1, length // 10)), "a tenth, at most Detectron2's")
    take("SOLVER.CHECKPOINT_PERIOD", max(1, length // 10), "ten in a run")
    workers = max(1, min(4, machine.cpus // machine.processes)) if machine.gpus else 1
    take("DATALOADER.NUM_WORKERS", workers, f"of {machine.cpus} cores")
