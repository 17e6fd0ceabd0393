"""What the rules are told of a user's images, objects and machine, and how it is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.annotations.catalog import align_classes, get_dataset
from ..data.annotations.records import has_area, is_trainable
from ..data.images.decode import UNREADABLE, decode_pixels
from ..data.images.sources import open_indexed
from ..runtime.errors import InputError

_SAMPLE = 200  # images that are opened
_ASSUMED = 16.0, 8  # GiB, and cores for a GPU, of a machine that is not this one


@dataclass(frozen=True)
class Images:
    """Images to pre-train on; medians of those that were opened."""

    root: str  # DATA.ROOT
    count: int
    short_side: int  # px
    is_grey: bool  # the three channels are the same
    decode_ms: float  # to read and decode one on one core

    def describe(self) -> str:
        """Return the facts in words."""
        colours = "grey" if self.is_grey else "in colour"
        return (
            f"{self.count} images {colours}, shorter side {self.short_side} px,"
            f" {self.decode_ms:.1f} ms to read and decode one"
        )


@dataclass(frozen=True)
class Objects:
    """Annotated objects to train a detector on, without crowd regions."""

    train: tuple[str, ...]  # names of data sets
    test: tuple[str, ...]
    images: int  # with a box, in the training sets, as all that follows
    short_side: int  # median, px
    classes: int
    # Square root of a box's area as a share of the image's shorter side: 5th, 10th, 95th percentile
    sides: tuple[float, float, float]
    elongated: float  # share of boxes with one side more than three times the other
    per_image: tuple[int, int]  # objects an image: 90th percentile and maximum
    has_masks: bool = False  # each object has a mask
    is_lvis: bool = False  # scored by LVIS's rules

    def describe(self) -> str:
        """Return the facts in words."""
        low, _, high = (round(side * self.short_side) for side in self.sides)
        return (
            f"{self.images} images, shorter side {self.short_side} px, {self.classes} classes;"
            f" 90 % of the objects have {low} to {high} px a side; 90 % of the images have at most"
            f" {self.per_image[0]} objects, the most is {self.per_image[1]}"
        )


@dataclass(frozen=True)
class Machine:
    """Where the runs will be."""

    gpus: int  # 0: the CPU
    memory: float  # GiB of each GPU, or of the host
    cpus: int
    is_assumed: bool = False  # the GPUs are not here to ask

    @property
    def processes(self) -> int:
        """Processes of a run: one for each GPU, or one."""
        return max(1, self.gpus)

    def describe(self) -> str:
        """Return the facts in words."""
        assumed = " (assumed: none is here to ask)" * self.is_assumed
        device = f"{self.gpus} GPU(s) of" if self.gpus else f"a CPU of {self.cpus} cores,"
        return f"{device} {self.memory:.0f} GiB{assumed}"


def look_at_images(root: str, count: int | None) -> Images:
    """Open some of the images that DATA.ROOT ``root`` names; ``count`` replaces their number.

    Raises:
        InputError: If there are none, or none of those that were opened can be decoded.
    """
    source = open_indexed(root)
    sides, grey, times = [], [], []
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int)):
        start = time.perf_counter()
        try:
            pixels = decode_pixels(source.content(int(index)))
        except UNREADABLE:
            continue
        times.append(time.perf_counter() - start)
        sides.append(min(pixels.shape[:2]))
        some = pixels[::8, ::8]
        grey.append((some == some[..., :1]).all())
    if not sides:
        what = "none of the images that were opened can be decoded, the first is"
        raise InputError(f"{root}: {what} {source.name(0)}. Give a folder with readable images.")
    middle, seconds = int(np.median(sides)), float(np.median(times))
    return Images(root, count or len(source), middle, bool(np.all(grey)), 1000 * seconds)


def look_at_objects(train: Sequence[str], test: Sequence[str]) -> Objects:
    """Read the annotations of data sets of the catalogue.

    Raises:
        InputError: If one cannot be read, has other classes, or no image has a box to train on.
    """
    datasets = [get_dataset(name) for name in (*train, *test)]
    if labelled := [dataset.name for dataset in datasets if dataset.kind == "semantic"]:
        raise InputError(
            f"suggest has rules for detectors alone, and {labelled[0]!r} has label images. Take a"
            " config of configs/segmentation, such as voc_R_18_FCN_small."
        )
    datasets = align_classes(datasets)
    records = [r for d in datasets[: len(train)] for r in d.records if is_trainable(r)]
    boxes, counts, masks = [], [], []
    for record in records:
        shorter = min(record["height"], record["width"])
        kept = [a for a in record["annotations"] if not a["iscrowd"] and has_area(a["bbox"])]
        boxes += [np.subtract(a["bbox"][2:], a["bbox"][:2]) / shorter for a in kept]
        masks += [bool(a.get("segmentation")) for a in kept]
        counts.append(len(kept))
    if not boxes:
        raise InputError(
            f"No image of {', '.join(train)} has a box to train on. See moco-transfer check-data."
        )
    sides = np.array(boxes)
    low, small, high = np.percentile(np.sqrt(sides.prod(1)), (5, 10, 95))
    return Objects(
        tuple(train),
        tuple(test),
        images=len(records),
        short_side=int(np.median([min(r["height"], r["width"]) for r in records])),
        classes=len(datasets[0].class_names),
        sides=(float(low), float(small), float(high)),
        elongated=float(np.mean(sides.max(1) > 3 * sides.min(1))),
        per_image=(int(np.percentile(counts, 90)), max(counts)),
        has_masks=all(masks),
        is_lvis=any(dataset.kind == "lvis" for dataset in datasets),
    )


def look_at_machine(gpus: int | None) -> Machine:
    """Ask this machine; ``gpus`` replaces their number, 0 for the CPU."""
    from ..runtime.device import gpu_memory, num_gpus

    here, cpus = num_gpus(), os.cpu_count() or 1
    gpus = here if gpus is None else gpus
    if gpus and not here:
        gib, cores = _ASSUMED
        return Machine(gpus, gib, cores * gpus, is_assumed=True)
    if gpus:
        total = gpu_memory()
    elif hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:  # Windows
        total = 8 << 30
    return Machine(gpus, total / 2**30, cpus)
