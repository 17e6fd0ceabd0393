"""Write huggingface.json: names, configs and features of transformers' own ResNets.

    PYTHONPATH=$PWD:tests/convert python tests/convert/make_huggingface_fixture.py

with transformers 5.24.0 installed. The weights are numbers that follow from the names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from networks import numbered_tensor

from moco_transfer.convert.verify import generated_image

FIXTURE = Path(__file__).with_name("huggingface.json")
NETWORKS = {
    "resnet18": {
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
    },
    "resnet50": {},
    "resnet50_v1": {"downsample_in_bottleneck": True},
}
STEP = 499  # each 499th number of a stage's features is kept


def numbered(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor by the name that transformers gives it."""
    return numbered_tensor(name.replace("normalization", "bn"), shape, dtype)


def names_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of all names and shapes."""
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def kept(features: torch.Tensor) -> list[float]:
    """Return some of the features, and the largest."""
    values = [*features.flatten()[::STEP].tolist(), features.abs().max().item()]
    return [round(value, 7) for value in values]


def main() -> None:
    """Run transformers."""
    from transformers import ResNetConfig, ResNetModel

    found = {}
    for name, settings in NETWORKS.items():
        config = ResNetConfig(**settings)
        model = ResNetModel(config).eval()
        state = model.state_dict()
        model.load_state_dict({n: numbered(n, tuple(t.shape), t.dtype) for n, t in state.items()})
        with torch.no_grad():
            _, *stages = model(generated_image(size=64), output_hidden_states=True).hidden_states
        found[name] = {
            "config": config.to_dict(),
            "names": names_hash(state),
            "features": {f"res{2 + i}": kept(stage) for i, stage in enumerate(stages)},
        }
    FIXTURE.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
