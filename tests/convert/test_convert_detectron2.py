"""The converted file in Detectron2 itself: it loads without a question, and the backbone computes
torchvision's features.

Seen red under: a projection head (stem.fc.weight) left in the file; a tensor left out of it; two
    norms swapped in it.
"""

from __future__ import annotations

import logging
import re

import pytest
import torch
from networks import seeded

from moco_transfer.convert import convert_checkpoint
from moco_transfer.convert.key_maps import WRITE_NAME, detectron2_name
from moco_transfer.convert.verify import STAGES, generated_image, torchvision_features
from moco_transfer.models import backbone_shapes

pytestmark = pytest.mark.detectron2

HEADS = ("backbone.fpn_", "proposal_generator.", "roi_heads.")


def config(arch, kind):
    """Return a config of Detectron2 for a network of torchvision's, on the CPU, with plain BN."""
    from detectron2 import model_zoo

    cfg = model_zoo.get_config(f"COCO-Detection/faster_rcnn_R_50_{kind}_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    resnets = cfg.MODEL.RESNETS
    resnets.STRIDE_IN_1X1, resnets.NORM = False, "BN"
    resnets.OUT_FEATURES = list(STAGES) if kind == "FPN" else resnets.OUT_FEATURES
    resnets.DEPTH = int(re.search(r"\d+", arch)[0])
    factor = {"resnet50_w2x": 2, "resnet50_w4x": 4}.get(arch, 1)
    resnets.STEM_OUT_CHANNELS *= factor
    resnets.RES2_OUT_CHANNELS = 64 if resnets.DEPTH in (18, 34) else 256 * factor
    resnets.WIDTH_PER_GROUP = 128 if arch == "wide_resnet50_2" else 64 * factor
    if arch.startswith("resnext"):
        resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = (
            32,
            int(arch.split("32x")[1].removesuffix("d")),
        )
    return cfg


def build(cfg):
    from detectron2.modeling import build_model

    return build_model(cfg).eval()


@pytest.fixture(scope="module")
def model():
    """A Faster R-CNN with a ResNet-18-FPN whose norms are BN."""
    return build(config("resnet18", "FPN"))


@pytest.fixture
def log_of_detectron2(caplog):
    """Detectron2's loggers keep their lines to themselves; here they are seen."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = True
    with caplog.at_level(logging.INFO):
        yield caplog
    for logger, propagate in zip(loggers, before, strict=True):
        logger.propagate = propagate


def assert_same_features(features, state, *, arch, stages=STAGES):
    expected = torchvision_features(state, generated_image(), arch=arch)
    for stage in stages:
        assert (features[stage] - expected[stage]).abs().max() <= 1e-5 * max(
            1, expected[stage].abs().max()
        ), stage
        assert expected[stage].abs().max() > 0.1, stage  # not zeros


def test_detectron2__loads_every_tensor_and_gives_the_same_features(
    model, converted, r18, log_of_detectron2
):
    from detectron2.checkpoint import DetectionCheckpointer

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rest = DetectionCheckpointer(model).load(str(converted))
    assert rest["moco_transfer"]["arch"] == "resnet18"  # the stamp passes through
    text = log_of_detectron2.text
    assert "Some model parameters or buffers are not found" in text  # the heads: so the log is seen
    assert "not used by the model" not in text and "unexpected" not in text.lower()
    after = model.state_dict()
    backbone = [name for name in after if name.startswith("backbone.bottom_up.")]
    assert len(backbone) == 120
    assert all(
        torch.equal(after[name], before[name]) for name in after if name not in backbone
    )  # heads stay as they were
    with torch.no_grad():
        features = model.backbone.bottom_up(generated_image())
    assert_same_features(
        features,
        {name: tensor for name, tensor in r18.items() if not name.startswith("fc.")},
        arch="resnet18",
    )


def incompatible_keys(model, path):
    from detectron2.checkpoint import DetectionCheckpointer

    checkpointer = DetectionCheckpointer(model)
    return checkpointer._load_model(checkpointer._load_file(str(path)))


def test_detectron2__reads_the_missing_keys_as_heads_only(model, converted):
    incompatible = incompatible_keys(model, converted)
    assert (incompatible.unexpected_keys, incompatible.incorrect_shapes) == ([], [])
    assert incompatible.missing_keys and all(
        name.startswith(HEADS) for name in incompatible.missing_keys
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch",
    [
        "resnet34",
        "resnet50",
        "resnet101",
        "resnext50_32x4d",
        "resnext50_32x8d",
        "wide_resnet50_2",
        "resnet50_w2x",
        "resnet50_w4x",
    ],
)
def test_detectron2__every_architecture(tmp_path, arch):
    """The paper's wide networks have more channels everywhere, torchvision's in the 3x3
    convolutions alone; Detectron2 has keys for both.
    """
    state = {
        name: tensor
        for name, tensor in seeded(arch).state_dict().items()
        if not name.startswith("fc.")
    }
    torch.save(state, tmp_path / "source.pth")
    report = convert_checkpoint(tmp_path / "source.pth", tmp_path / "b.pkl", verify=True)
    assert report.arch == arch
    model = build(config(arch, "FPN"))
    incompatible = incompatible_keys(model, tmp_path / "b.pkl")
    assert (incompatible.unexpected_keys, incompatible.incorrect_shapes) == ([], [])
    assert all(name.startswith(HEADS) for name in incompatible.missing_keys)
    with torch.no_grad():
        features = model.backbone.bottom_up(generated_image())
    assert_same_features(features, state, arch=arch)


@pytest.mark.slow
def test_detectron2__a_c4_detector_there_and_back(tmp_path):
    """C4 keeps res5 in its head: it is loaded there, and comes back from a saved detector bit for
    bit.
    """
    from detectron2.checkpoint import DetectionCheckpointer

    state = {
        name: tensor
        for name, tensor in seeded("resnet50").state_dict().items()
        if not name.startswith("fc.")
    }
    torch.save(state, tmp_path / "source.pth")
    convert_checkpoint(tmp_path / "source.pth", tmp_path / "b.pkl")
    model = build(config("resnet50", "C4"))
    incompatible = incompatible_keys(model, tmp_path / "b.pkl")
    assert (incompatible.unexpected_keys, incompatible.incorrect_shapes) == ([], [])
    assert not [
        name for name in incompatible.missing_keys if "res5" in name or name.startswith("backbone.")
    ]
    with torch.no_grad():
        features = model.backbone(generated_image())
        features["res5"] = model.roi_heads.res5(features["res4"])
    assert_same_features(features, state, arch="resnet50", stages=("res4", "res5"))
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    convert_checkpoint(tmp_path / "model_final.pth", tmp_path / "back.pth", to="torchvision")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys() and all(
        torch.equal(back[name], tensor) for name, tensor in state.items()
    )


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet101"])
def test_caffe2_names__are_those_that_detectron2_reads(arch):
    """Detectron2's own map of Caffe2's names, which knows them from the published R-50.pkl, gives
    the names that ours are written under.
    """
    from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names

    names = list(backbone_shapes(arch))
    blobs = {WRITE_NAME["caffe2"](name): torch.zeros(1) for name in names}
    theirs, original = convert_c2_detectron_names(blobs)
    assert {original[theirs_name]: theirs_name for theirs_name in theirs} == {
        WRITE_NAME["caffe2"](name): detectron2_name(name) for name in names
    }
