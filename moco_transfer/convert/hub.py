"""A folder as the Hugging Face Hub has it: timm and Transformers load it, and a card describes it.

``model.safetensors`` holds the backbone by timm's names. config.json is timm's, which Transformers
reads as well (TimmWrapperModel). README.md is the model card.

Source: timm 1.0 models/_hub.py save_config_for_hf; Transformers 5.24 models/timm_wrapper.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models import IMAGENET_PIXELS
from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text
from .huggingface import CONFIG, WEIGHTS

SCHEME = "hf://"
_TIMM_NAMES = {"resnext50_32x8d": ("resnext50_32x4d", {"base_width": 8})}
_FEATURES = {True: 512, False: 2048}  # of a network of basic blocks, of bottlenecks
_PAPERS = "https://arxiv.org/abs/1911.05722 and https://arxiv.org/abs/2003.04297"
_CARD = """---
{{ card_data }}
---

# {{ name }}

A {{ stamp.arch }} pre-trained by {{ stamp.mechanism or "a method that its file does not name" }}
{%- if stamp.epoch is not none %}, {{ stamp.epoch }} epochs{% endif %}, converted by moco-transfer.
It has no classifier: it gives features.

    model = timm.create_model("hf-hub:USER/{{ name }}", pretrained=True)
    model = transformers.AutoModel.from_pretrained("USER/{{ name }}")

## Weights

| | |
| --- | --- |
{% for key, value in facts.items() -%}
| {{ key }} | {{ value }} |
{% endfor %}
{%- if features %}
## Features

| protocol | result |
| --- | --- |
{% for line in features -%}
| {{ line.name }} | {{ line.text }} |
{% endfor %}
{%- endif %}
{%- if tables %}
## Transfer

{{ tables }}
{% endif %}
{%- if config %}
## Pre-training config

```yaml
{{ config }}
```
{% endif %}
## How to cite

Momentum contrast: {{ papers }}. The run itself: name its authors and this page.
"""


def fetch(address: str) -> Path:
    """Return the local copy of ``hf://USER/NAME[/FILE]``, downloaded once and cached by
    huggingface-hub; FILE is ``model.safetensors`` by default. HF_ENDPOINT names another Hub.

    Raises:
        InputError: If the address has another form, the package is not installed, or the Hub does
            not have the file or does not answer.
    """
    parts = address.removeprefix(SCHEME).split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise InputError(f"{address!r} is no address on the Hub, expected hf://USER/NAME[/FILE].")
    hub = _package()
    file = parts[2] if len(parts) > 2 else WEIGHTS
    try:
        return Path(hub.hf_hub_download("/".join(parts[:2]), file))
    except Exception as error:  # of its HTTP library too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        raise InputError(f"Cannot get {address} from {where}: {reason}") from error


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            "The package huggingface-hub is not installed. Install it: pip install"
            " 'moco-transfer[hub]'."
        ) from error
    return huggingface_hub


def timm_config(stamp: Mapping[str, Any], channels: int = 3) -> dict[str, Any]:
    """Return config.json of a backbone."""
    name, more = _TIMM_NAMES.get(stamp["arch"], (stamp["arch"], {}))
    more = more | ({"in_chans": channels} if channels != 3 else {})
    known: Mapping[str, Any] = IMAGENET_PIXELS
    pixels = {key: stamp[f"pixel_{key}"] or known[key] for key in ("mean", "std")}
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": _FEATURES[stamp["arch"] in ("resnet18", "resnet34")],
        "global_pool": "avg",
        **({"model_args": more} if more else {}),
        "pretrained_cfg": {
            "tag": stamp["mechanism"] or "moco_transfer",
            "input_size": [channels, 224, 224],
            "fixed_input_size": False,
            "pool_size": [7, 7],
            "interpolation": "bilinear",
            "crop_pct": 0.875,
            **{key: [value / 255 for value in values] for key, values in pixels.items()},
            "num_classes": 0,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def write_hub_files(
    folder: Path,
    stamp: Mapping[str, Any],
    *,
    licence: str = "",
    config: str = "",
    features: Sequence[Mapping[str, Any]] = (),
    tables: str = "",
) -> None:
    """Write config.json and README.md next to the weights.

    Args:
        folder: Its name is that of the model.
        stamp: Of the weights.
        licence: For the card, such as ``cc-by-nc-4.0``; it is not stated where it is empty.
        config: Of the pre-training, YAML.
        features: ``name`` and ``text`` of each result of kNN and the linear protocol.
        tables: Transfer tables, Markdown.
    """
    hub = _package()
    channels = stamp.get("input_channels", 3)
    atomic_write_text(folder / CONFIG, json.dumps(timm_config(stamp, channels), indent=2) + "\n")
    data = hub.ModelCardData(
        license=licence or None,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["image-feature-extraction", "timm", "moco", "moco-transfer"],
    )
    facts = {key.replace("_", " "): value for key, value in stamp.items() if value is not None}
    shown = {"stamp": stamp, "facts": facts, "features": features, "tables": tables}
    texts = {"name": folder.resolve().name, "config": config.strip(), "papers": _PAPERS}
    card = hub.ModelCard.from_template(data, template_str=_CARD, **shown, **texts)
    atomic_write_text(folder / "README.md", str(card))


def push(folder: Path, name: str) -> str:
    """Upload a folder as USER/NAME, a new repository if there is none; return its address.

    Raises:
        InputError: If the Hub refuses, or no token is known (``hf auth login``, or HF_TOKEN).
    """
    hub = _package()
    try:
        hub.create_repo(name, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=str(folder)))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"The Hub does not take {folder} as {name}: {reason}") from error
