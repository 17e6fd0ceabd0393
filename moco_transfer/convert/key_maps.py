"""How each project names the tensors of a ResNet: tables between those names and torchvision's.

Every source is read into torchvision's names, every target written from them.

Source:
    facebookresearch/detectron2@02b5c4e2 modeling/backbone/resnet.py, and for Caffe2
        checkpoint/c2_model_loading.py.
    Sequential: ``nn.Sequential(*list(resnet.children())[:-1])`` as in lightly's examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

_MOST_BLOCKS = 48  # in a stage; ResNet-152 has 36


def _places(stem: list[str], block: str, parts: list[str]) -> Iterator[str]:
    """Yield where the convolutions and norms of a ResNet lie, in the same order for all namings."""
    yield from stem
    for stage in (1, 2, 3, 4):
        for index in range(_MOST_BLOCKS):
            place = block.format(
                index, stage=stage - 1, layer=stage, res=stage + 1, child=stage + 3
            )
            yield from (place + part for part in parts)


def _table(
    stem: list[str], block: str, parts: list[str], conv: dict[str, str], norm: dict[str, str]
) -> dict[str, str]:
    """Return a naming's name -> torchvision's, of every tensor; see ``key_maps.yaml``."""
    own = _ROWS["torchvision"]
    ours = _places(own["stem"], own["block"], own["parts"])
    pairs = enumerate(zip(_places(stem, block, parts), ours, strict=True))
    return {
        theirs + tensor: our + name
        for number, (theirs, our) in pairs
        for tensor, name in (norm if number % 2 else conv).items()
    }


_ROWS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_TABLES = {naming: _table(**row) for naming, row in _ROWS.items()}

READ_NAME: dict[str, Callable[[str], str | None]] = {n: t.get for n, t in _TABLES.items()}
"""Naming -> function: one of its names -> torchvision's, None when it is no backbone tensor."""

WRITE_NAME: dict[str, Callable[[str], str | None]] = {
    naming: {ours: theirs for theirs, ours in reversed(table.items())}.get
    for naming, table in _TABLES.items()
}
"""Naming -> function: torchvision's name -> that naming's, None when it is no backbone tensor."""

detectron2_name = WRITE_NAME["detectron2"]
"""``layer1.0.bn2.bias`` -> ``res2.0.conv2.norm.bias``, without ``backbone.bottom_up.``."""
