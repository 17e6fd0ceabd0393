"""What Detectron2 makes of the masks of ``bitmask_cases``; see there for the command.

Needs Detectron2 (facebookresearch/detectron2@02b5c4e was used).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bitmask_cases as cases
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

FIXTURE = Path(__file__).parent / "fixtures" / "bitmasks.json"


def digests(record: dict) -> list[list[int]]:
    """Return what Detectron2's mapper and mask targets come to, for each change of an image."""
    return [_digest(record, change.flip) for change in cases.changes(record)]


def _digest(record: dict, flip: str) -> list[int]:
    augmentations = [T.ResizeShortestEdge([cases.SIZES[0]], cases.SIZES[1], "choice")]
    if flip != "none":
        sides = {"horizontal": flip == "horizontal", "vertical": flip == "vertical"}
        augmentations.append(T.RandomFlip(1.0, **sides))
    mode = {"bbox_mode": BoxMode.XYXY_ABS}
    annotations = [annotation | mode for annotation in record["annotations"]]
    settings = {"use_instance_mask": True, "instance_mask_format": "bitmask"}
    mapper = DatasetMapper(True, augmentations=augmentations, image_format="RGB", **settings)
    found = mapper({**record, "annotations": annotations})["instances"]
    boxes = found.gt_boxes.tensor.numpy()
    near = torch.from_numpy(cases.near(boxes, record["image_id"]))
    targets = torch.stack([found.gt_masks.crop_and_resize(b, cases.GRID) for b in near])
    return cases.digest(boxes, found.gt_masks.tensor.numpy(), targets.numpy())


def main() -> None:
    """Write the fixture from the folder that the argument names."""
    of_image = {str(r["image_id"]): digests(r) for r in cases.records(Path(sys.argv[1]))}
    lines = (f"{json.dumps(name)}: {json.dumps(values)}" for name, values in of_image.items())
    FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
