"""The converted file in Detectron2 itself: it loads without a question, and the backbone computes torchvision's features.

Seen red under: a projection head (stem.fc.weight) left in the file; a tensor left out of it; two norms swapped in it.
"""

import logging

import pytest
import torch

from moco_transfer.convert.verify import STAGES, generated_picture, torchvision_features

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def model():
    """A Faster R-CNN with a ResNet-18-FPN whose norms are BN, on the CPU."""
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.MODEL.RESNETS.NORM = False, "BN"
    return build_model(cfg).eval()


def test_detectron2__loads_every_tensor_and_gives_the_same_features(model, converted, r18, caplog):
    from detectron2.checkpoint import DetectionCheckpointer

    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).propagate = True
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        rest = DetectionCheckpointer(model).load(str(converted))
    assert rest["moco_transfer"]["arch"] == "resnet18"  # the stamp passes through
    assert "not used by the model" not in caplog.text and "unexpected" not in caplog.text.lower()
    after = model.state_dict()
    backbone = [name for name in after if name.startswith("backbone.bottom_up.")]
    assert len(backbone) == 120
    assert all(torch.equal(after[name], before[name]) for name in after if name not in backbone)  # heads stay as they were
    picture = generated_picture()
    state = {name: tensor for name, tensor in r18.items() if not name.startswith("fc.")}
    expected = torchvision_features(state, picture, arch="resnet18")
    with torch.no_grad():
        features = model.backbone.bottom_up(picture)
    for stage in STAGES:
        assert (features[stage] - expected[stage]).abs().max() <= 1e-5 * max(1, expected[stage].abs().max()), stage


def test_detectron2__reads_the_missing_keys_as_heads_only(model, converted):
    from detectron2.checkpoint import DetectionCheckpointer

    checkpointer = DetectionCheckpointer(model)
    incompatible = checkpointer._load_model(checkpointer._load_file(str(converted)))
    assert incompatible.unexpected_keys == []
    assert incompatible.missing_keys and all(
        name.startswith(("backbone.fpn_", "proposal_generator.", "roi_heads.")) for name in incompatible.missing_keys
    )
