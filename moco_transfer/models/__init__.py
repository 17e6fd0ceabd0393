"""Every ResNet (builders, tensor names and shapes), and the pixel statistics of weights."""

from .pixels import IMAGENET_MEAN, IMAGENET_PIXELS, IMAGENET_STD, MSRA_PIXELS
from .resnets import (
    BASIC_BLOCKS,
    BLOCKS,
    ENCODERS,
    add_mlp_head,
    backbone_shapes,
    build_encoder,
    recognise,
)

__all__ = [
    "BASIC_BLOCKS",
    "BLOCKS",
    "ENCODERS",
    "IMAGENET_MEAN",
    "IMAGENET_PIXELS",
    "IMAGENET_STD",
    "MSRA_PIXELS",
    "add_mlp_head",
    "backbone_shapes",
    "build_encoder",
    "recognise",
]
