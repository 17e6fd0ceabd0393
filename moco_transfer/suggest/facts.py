"""What the rules are told of a user's images, objects and machine."""

from __future__ import annotations

from dataclasses import dataclass


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
    has_polygons: bool = False  # each object has a mask of polygons

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
