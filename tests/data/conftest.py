"""Small data sets in VOC's and COCO's layout, written by the test that uses them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from moco_transfer.data.views import native


def _image(path, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(width * 1000 + height)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def _xml(width, height, objects):
    lines = [
        f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    ]
    for name, box, difficult in objects:
        corners = "".join(
            f"<{tag}>{value}</{tag}>"
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        lines.append(
            f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
            f"<bndbox>{corners}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>"])


@pytest.fixture
def make_voc(tmp_path):
    """Return a function that writes a VOC tree: {image id: (width, height, [(class, (xmin, ymin,
    xmax, ymax), difficult)])}.
    """

    def make(images, split="train", root=None):
        root = root or tmp_path / "VOC"
        for image_id, (width, height, objects) in images.items():
            _image(root / "JPEGImages" / f"{image_id}.jpg", width, height)
            (root / "Annotations").mkdir(exist_ok=True)
            (root / "Annotations" / f"{image_id}.xml").write_text(_xml(width, height, objects))
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(
            "".join(f"{image_id}\n" for image_id in images)
        )
        return root

    return make


@pytest.fixture
def make_coco(tmp_path):
    """Return a function that writes images and a json file with the given lists; categories
    default to ids 3 and 7.
    """

    def make(images, annotations, categories=None, **fields):
        for image in images:
            if "file_name" in image:
                _image(
                    tmp_path / "images" / image["file_name"],
                    image.get("width", 8),
                    image.get("height", 8),
                )
        categories = categories or [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
        path = tmp_path / "annotations.json"
        path.write_text(
            json.dumps(
                {"images": images, "annotations": annotations, "categories": categories, **fields}
            )
        )
        return path, tmp_path / "images"

    return make


@pytest.fixture(params=["native", "torch"])
def back_end(request, monkeypatch) -> str:
    """Run a test with the compiled loops, and again with torch's operators."""
    if request.param == "native" and not native.available():
        pytest.skip("the compiled loops were not built")
    if request.param == "torch":
        monkeypatch.setattr(native, "available", lambda: False)
    return request.param
