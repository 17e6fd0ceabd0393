"""What fine-tuning is handed.

Seen red under: the prefix left on the names of a detector; the stamp of another file returned;
    other layouts let through.
"""

import hashlib
import pickle

import numpy as np
import pytest
import torch

from moco_transfer.convert import coverage, load_backbone
from moco_transfer.convert.key_maps import detectron2_name
from moco_transfer.models import backbone_shapes
from moco_transfer.runtime.errors import InputError


def test_load_backbone__a_converted_file(converted, r18):
    weights = load_backbone(converted)
    assert (weights.kind, weights.arch, weights.state_dict) == ("backbone", "resnet18", {})
    assert weights.sha256 == hashlib.sha256(converted.read_bytes()).hexdigest()
    assert weights.stamp["source_format"] == "moco"
    assert len(weights.arrays) == 120
    assert np.array_equal(
        weights.arrays["res2.0.conv1.norm.running_var"], r18["layer1.0.bn1.running_var"].numpy()
    )
    expected = {detectron2_name(name): shape for name, shape in backbone_shapes("resnet18").items()}
    assert coverage(weights.arrays, expected).is_complete


@pytest.mark.parametrize("place", ["backbone.bottom_up.", "backbone."])
@pytest.mark.parametrize("kind", ["pkl", "pth"])
def test_load_backbone__a_detector(converted, tmp_path, place, kind):
    arrays = pickle.loads(converted.read_bytes())["model"]
    # A C4 detector keeps res5 in its head.
    where = {
        name: "roi_heads." if place == "backbone." and name.startswith("res5.") else place
        for name in arrays
    }
    model = {where[name] + name: array for name, array in arrays.items()}
    model["roi_heads.box_predictor.cls_score.weight"] = np.ones((3, 4), np.float32)
    path = tmp_path / f"model_final.{kind}"
    if kind == "pkl":
        path.write_bytes(pickle.dumps({"model": model, "__author__": "Detectron2 Model Zoo"}))
    else:
        torch.save(
            {
                "model": {name: torch.from_numpy(array) for name, array in model.items()},
                "iteration": 9,
            },
            path,
        )
    weights = load_backbone(path)
    assert (weights.kind, weights.stamp, weights.arch) == ("detector", None, "resnet18")
    assert {name: array.tobytes() for name, array in weights.arrays.items()} == {
        n: a.tobytes() for n, a in arrays.items()
    }
    assert weights.state_dict.keys() == model.keys()
    assert np.array_equal(
        weights.state_dict["roi_heads.box_predictor.cls_score.weight"], np.ones((3, 4))
    )


def test_load_backbone__a_gap_is_the_callers_to_see(converted, tmp_path):
    content = pickle.loads(converted.read_bytes())
    del content["model"]["res3.0.conv1.weight"]
    content["model"]["res3.0.attention.weight"] = np.zeros(3, np.float32)
    (tmp_path / "gap.pkl").write_bytes(pickle.dumps(content))
    expected = {detectron2_name(name): shape for name, shape in backbone_shapes("resnet18").items()}
    covered = coverage(load_backbone(tmp_path / "gap.pkl").arrays, expected)
    assert (covered.missing, covered.unused) == (
        ("res3.0.conv1.weight",),
        ("res3.0.attention.weight",),
    )


def test_load_backbone__other_layouts_are_sent_to_convert(saved, official_small, small):
    with pytest.raises(
        InputError,
        match=(
            r"layout of MoCo v1/v2 .*convert it first: moco-transfer convert .*source.pth"
            r" backbone.pkl"
        ),
    ):
        load_backbone(saved(official_small))
    with pytest.raises(InputError, match="layout of torchvision"):
        load_backbone(saved(dict(small)))
    with pytest.raises(InputError, match="holds no ResNet|no known layout|is not in the layout"):
        load_backbone(saved({"features.0.weight": torch.zeros(3)}))
