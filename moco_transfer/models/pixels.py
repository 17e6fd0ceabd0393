"""Pixel statistics that weights were trained with: 0-255, channels in the order of ``format``."""

CHANNEL_ORDERS = {1: "L", 3: "RGB"}
"""Number of channels -> ``format``, as PIL calls it."""
BANDS = "bands"
"""``format`` of any other number of channels."""

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""torchvision's ImageNet mean, RGB."""
IMAGENET_STD = (58.395, 57.12, 57.375)

IMAGENET_PIXELS = {"format": "RGB", "mean": [*IMAGENET_MEAN], "std": [*IMAGENET_STD]}
"""What every project but Detectron2's model zoo and Caffe2 trains with."""

MSRA_PIXELS = {"format": "BGR", "mean": [*IMAGENET_MEAN[::-1]], "std": [1.0, 1.0, 1.0]}
"""Detectron2's defaults, for Caffe2's models: the standard deviation is folded into the stem."""
