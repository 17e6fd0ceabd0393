"""Every ResNet (builders, tensor names and shapes), and the pixel statistics of weights."""

from .pixels import IMAGENET_MEAN, IMAGENET_PIXELS, IMAGENET_STD, MSRA_PIXELS
from .resnets import (
    ARCHITECTURES,
    BASIC_BLOCKS,
    BATCH_COUNTER,
    BATCH_NORM_EPS,
    BLOCKS,
    ENCODERS,
    WIDENED,
    add_mlp_head,
    backbone_shapes,
    build_encoder,
    count_trunk_parameters,
    has_small_stem,
    recognise,
)

__all__ = [
    "ARCHITECTURES",
    "BASIC_BLOCKS",
    "BATCH_COUNTER",
    "BATCH_NORM_EPS",
    "BLOCKS",
    "ENCODERS",
    "IMAGENET_MEAN",
    "IMAGENET_PIXELS",
    "IMAGENET_STD",
    "MSRA_PIXELS",
    "WIDENED",
    "add_mlp_head",
    "backbone_shapes",
    "build_encoder",
    "count_trunk_parameters",
    "has_small_stem",
    "recognise",
]
