"""The hand-over of weights: every tensor of the trunk lands in the detector, or the run is refused.

Should go red under (not tried yet):
    leaving res5 out of the trunk; comparing means without the standard deviations; writing to a copy of the parameters.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision

from moco_transfer.config import load_detection_config
from moco_transfer.convert import convert_checkpoint
from moco_transfer.finetune import build_model
from moco_transfer.finetune.handover import check_pixels, load_weights, trunk_places
from moco_transfer.runtime.errors import InputError

PIXELS = {"format": "RGB", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "stride_in_1x1": False}


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def backbone_file(resnet18, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(resnet18.state_dict(), folder / "r18.pth")
    convert_checkpoint(folder / "r18.pth", folder / "r18.pkl")
    return folder / "r18.pkl"


def detector():
    return build_model(load_detection_config("demo_R_18_FPN"))


def test_load_weights__features_of_the_detectors_trunk_equal_torchvisions(resnet18, backbone_file):
    model = detector().eval()
    said = load_weights(model, str(backbone_file), arch="resnet18", pixels=PIXELS)
    assert said["coverage"] == {"expected": 100, "matched": 100, "missing": [], "unused": [], "misshapen": []}  # 20 convolutions + 20 x 4 BN
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        got = model.backbone.bottom_up(images)
        x = resnet18.maxpool(resnet18.relu(resnet18.bn1(resnet18.conv1(images))))
        for name, stage in (("res2", resnet18.layer1), ("res3", resnet18.layer2), ("res4", resnet18.layer3), ("res5", resnet18.layer4)):
            x = stage(x)
            torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-4)


def test_load_weights__heads_stay_random(backbone_file):
    torch.manual_seed(1)
    model = detector()
    before = model.roi_heads.box_head.fc1.weight.clone()
    load_weights(model, str(backbone_file), arch="resnet18", pixels=PIXELS)
    assert torch.equal(model.roi_heads.box_head.fc1.weight, before)


def test_load_weights__half_a_backbone_is_refused_unless_allowed(backbone_file, tmp_path):
    import pickle

    content = pickle.loads(backbone_file.read_bytes())
    content["model"] = {k: v for k, v in content["model"].items() if not k.startswith(("res4", "res5"))}
    (tmp_path / "half.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"covers 50 of 100 backbone tensors of resnet18. Missing \(50\): res4.0.shortcut.weight"):
        load_weights(detector(), str(tmp_path / "half.pkl"), arch="resnet18", pixels=PIXELS)
    said = load_weights(detector(), str(tmp_path / "half.pkl"), arch="resnet18", pixels=PIXELS, allow_partial=True)
    assert said["coverage"]["matched"] == 50 and len(said["coverage"]["missing"]) == 50


def test_trunk_places__r18_fpn():
    places = trunk_places(detector())
    assert len(places) == 100
    assert places["stem.conv1.norm.running_var"] == "backbone.bottom_up.stem.conv1.norm.running_var"
    assert places["res5.1.conv2.weight"] == "backbone.bottom_up.res5.1.conv2.weight"


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        ({"format": "BGR"}, "was trained on BGR pictures, but the config says INPUT.FORMAT 'RGB'"),
        ({"pixel_mean": [0.0, 0.0, 0.0]}, "MODEL.PIXEL_MEAN"),
        ({"pixel_std": [1.0, 1.0, 1.0]}, "MODEL.PIXEL_STD"),
        ({"stride_in_1x1": True, "arch": "resnet50"}, "its stride in the 1x1 convolutions"),
    ],
)
def test_check_pixels__contradiction__error(stamp, message):
    with pytest.raises(InputError, match=message):
        check_pixels(stamp, PIXELS, "x.pkl")


def test_check_pixels__agreement_and_ignorance():
    stamp = {"format": "RGB", "pixel_mean": PIXELS["mean"], "pixel_std": [58.4, 57.12, 57.375], "stride_in_1x1": False, "arch": "resnet50"}
    check_pixels(stamp, PIXELS, "x")
    check_pixels({}, PIXELS, "x")
    check_pixels({"stride_in_1x1": True, "arch": "resnet18"}, PIXELS, "x")  # basic blocks have no 1x1 convolution to stride in
    assert np.isclose(0.485 * 255, PIXELS["mean"][0])
