"""Hugging Face's files next to the weights: what ``transformers`` needs to know of a ResNet.

config.json has the network: ``downsample_in_bottleneck`` is STRIDE_IN_1X1, ResNet v1.
preprocessor_config.json has mean and standard deviation of pixels from 0 to 1, RGB.

Source: huggingface/transformers models/resnet, version 5.24.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models import IMAGENET_PIXELS
from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text, regular
from ..runtime.text import parse_json

WEIGHTS = "model.safetensors"  # the names that transformers looks for in a folder
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

# What this program computes too -> the only value, which is also transformers' default.
_SAME = {"model_type": "resnet", "hidden_act": "relu", "downsample_in_first_stage": False}


def can_hold(arch: str) -> bool:
    """Whether transformers' ResNet computes this network: it has no groups, no wide bottlenecks."""
    return arch.startswith("resnet")


def read_facts(weights: Path) -> tuple[Mapping[str, Any], bool | None]:
    """Return the pixels and STRIDE_IN_1X1 of a ResNet from the files next to its weights.

    Without a config.json the stride is not known: None. InputError if the config is of a network
    that has a ResNet's names but computes something else.
    """
    config, prepare = (_read(weights.with_name(name)) for name in (CONFIG, PREPROCESSOR))
    for key, value in _SAME.items():
        if config.get(key, value) != value:
            raise InputError(
                f"{weights.with_name(CONFIG)}: {key} is {config[key]!r}, expected {value!r}; only"
                " such ResNets can be converted."
            )
    pixels: dict[str, Any] = dict(IMAGENET_PIXELS)
    for key, ours in (("image_mean", "mean"), ("image_std", "std")):
        if isinstance(prepare.get(key), list):
            pixels[ours] = [255 * value for value in prepare[key]]
    return pixels, bool(config.get("downsample_in_bottleneck", False)) if config else None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(regular(path).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, expected a JSON object.")
    return found


def write_configs(folder: Path, state: Mapping[str, Tensor], stamp: Mapping[str, Any]) -> None:
    """Write config.json and, where the pixels are known and RGB, preprocessor_config.json.

    ``state``: torchvision's name -> tensor.
    """
    is_basic = "layer1.0.conv3.weight" not in state
    last = "conv2" if is_basic else "conv3"
    stages = [[n for n in state if re.match(rf"layer{i}\.\d+\.conv1\.w", n)] for i in (1, 2, 3, 4)]
    config = {
        "architectures": ["ResNetModel"],
        **_SAME,
        "num_channels": state["conv1.weight"].shape[1],
        "embedding_size": len(state["conv1.weight"]),
        "hidden_sizes": [len(state[f"layer{i}.0.{last}.weight"]) for i in (1, 2, 3, 4)],
        "depths": [len(names) for names in stages],
        "layer_type": "basic" if is_basic else "bottleneck",
        "downsample_in_bottleneck": bool(stamp["stride_in_1x1"]),
    }
    atomic_write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    if stamp["format"] == "RGB":
        prepare = {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 224},
            "crop_pct": 0.875,
            "image_mean": [value / 255 for value in stamp["pixel_mean"]],
            "image_std": [value / 255 for value in stamp["pixel_std"]],
        }
        atomic_write_text(folder / PREPROCESSOR, json.dumps(prepare, indent=2) + "\n")
