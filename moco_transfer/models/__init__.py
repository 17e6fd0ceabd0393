"""Every ResNet (builders, tensor names and shapes), and the pixel statistics of weights."""

from .pixels import BANDS, CHANNEL_ORDERS, IMAGENET_MEAN, IMAGENET_PIXELS, IMAGENET_STD, MSRA_PIXELS
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
    "BANDS",
    "BASIC_BLOCKS",
    "BLOCKS",
    "CHANNEL_ORDERS",
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
