"""The hand-over of weights: every tensor of the trunk is in the detector, or the run is rejected;
what kind of weights they are.

Seen red under: --init beats the file; torchvision layout is supervised; res5 not part of the trunk;
    writes to a copy;
the official converter's file without pixels, or with a stride for basic blocks; a predictor of
other classes loaded where its shape fits; half a head loaded; the zoo's pixels taken for RGB.
"""

from __future__ import annotations

import logging
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from moco_transfer.config import flatten_config, load_detection_config
from moco_transfer.convert import convert_checkpoint
from moco_transfer.convert.key_maps import WRITE_NAME, detectron2_name
from moco_transfer.finetune import build_model, handover
from moco_transfer.finetune.handover import (
    coverage_gap,
    describe_weights,
    load_weights,
    read_weights,
    trunk_places,
    weights_coverage,
)
from moco_transfer.finetune.lint import lint


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


def load(model, weights):
    """Load the weights and return what results.json says of them."""
    load_weights(model, weights)
    return describe_weights(weights, weights_coverage(model.state_dict(), weights))


def gap_of(model, weights):
    return coverage_gap(weights_coverage(model.state_dict(), weights), weights, "resnet18")


def detector():
    return build_model(load_detection_config("demo_R_18_FPN"))


def test_load_weights__features_of_the_detectors_trunk_equal_torchvisions(resnet18, backbone_file):
    model = detector().eval()
    record = load(model, read_weights(str(backbone_file)))
    assert record["coverage"] == {
        "expected": 100,
        "matched": 100,
        "missing": [],
        "unused": [],
        "misshapen": [],
    }  # 20 convolutions + 20 x 4 BN
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        got = model.backbone.bottom_up(images)
        x = resnet18.maxpool(resnet18.relu(resnet18.bn1(resnet18.conv1(images))))
        for name, stage in (
            ("res2", resnet18.layer1),
            ("res3", resnet18.layer2),
            ("res4", resnet18.layer3),
            ("res5", resnet18.layer4),
        ):
            x = stage(x)
            torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-4)


def test_load_weights__heads_stay_random(backbone_file):
    torch.manual_seed(1)
    model = detector()
    before = model.roi_heads.box_head.fc1.weight.clone()
    load(model, read_weights(str(backbone_file)))
    assert torch.equal(model.roi_heads.box_head.fc1.weight, before)


def test_load_weights__half_a_backbone_is_refused_unless_allowed(backbone_file, tmp_path):
    content = pickle.loads(backbone_file.read_bytes())
    content["model"] = {
        k: v for k, v in content["model"].items() if not k.startswith(("res4", "res5"))
    }
    (tmp_path / "half.pkl").write_bytes(pickle.dumps(content))
    half = read_weights(str(tmp_path / "half.pkl"))
    gap = gap_of(detector(), half)
    assert "covers 50 of 100 backbone tensors of resnet18" in gap and "res4.0.shortcut" in gap
    record = load(detector(), half)
    assert record["coverage"]["matched"] == 50 and len(record["coverage"]["missing"]) == 50


def test_trunk_places__r18_fpn():
    places = trunk_places(list(detector().state_dict()))
    assert len(places) == 100
    assert places["stem.conv1.norm.running_var"] == "backbone.bottom_up.stem.conv1.norm.running_var"
    assert places["res5.1.conv2.weight"] == "backbone.bottom_up.res5.1.conv2.weight"


def write_stamped(path, backbone_file, stamp):
    content = pickle.loads(backbone_file.read_bytes())
    if stamp is None:
        del content["moco_transfer"]
    else:
        content["moco_transfer"].update(stamp)
    path.write_bytes(pickle.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("stamp", "init", "kind"),
    [
        ({"mechanism": "moco"}, None, "self-supervised"),
        (
            {"mechanism": "moco"},
            "supervised",
            "self-supervised",
        ),  # what the file says of itself counts for more
        ({"mechanism": "dino"}, None, "self-supervised"),
        ({"mechanism": "supervised"}, None, "supervised"),
        ({"mechanism": None, "source_format": "caffe2", "source": "R-50.pkl"}, None, "supervised"),
        (
            {"mechanism": None, "source_format": "torchvision", "source": "resnet50-0676ba61.pth"},
            None,
            "supervised",
        ),
        (
            {"mechanism": None, "source_format": "vissl", "source": "x.torch"},
            None,
            "self-supervised",
        ),
        # torchvision's layout is anybody's
        ({"mechanism": None, "source_format": "torchvision", "source": "r50.pth"}, None, "unknown"),
        (
            {"mechanism": None, "source_format": "torchvision", "source": "r50.pth"},
            "supervised_v2",
            "supervised",
        ),
        (None, None, "unknown"),
    ],
)
def test_read_weights__kind(backbone_file, tmp_path, stamp, init, kind):
    assert (
        read_weights(write_stamped(tmp_path / "b.pkl", backbone_file, stamp), init=init).kind
        == kind
    )


def test_read_weights__the_official_converters_file_is_mocos(
    backbone_file, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(
        logging.getLogger("moco_transfer"), "propagate", True
    )  # a command line that ran before has switched it off
    content = pickle.loads(backbone_file.read_bytes())
    del content["moco_transfer"]
    content["__author__"] = "MOCO"
    (tmp_path / "official.pkl").write_bytes(pickle.dumps(content))
    weights = read_weights(str(tmp_path / "official.pkl"))
    assert (weights.kind, weights.stamp) == ("self-supervised", None)
    assert "carries no stamp" not in caplog.text  # nothing is unknown about it
    small = load_detection_config(
        "demo_R_18_FPN", ["MODEL.RESNETS.STRIDE_IN_1X1", "True"]
    )  # there is no 1x1 in a basic block
    assert [
        f.name for f in lint(flatten_config(small), weights, world_size=1, reference=None)
    ] == []


def test_read_weights__the_official_converters_file_does_not_suit_an_msra_config(tmp_path):
    model = {
        detectron2_name(name): tensor.numpy()
        for name, tensor in torchvision.models.resnet50().state_dict().items()
        if name[:3] != "fc."
    }
    (tmp_path / "official.pkl").write_bytes(
        pickle.dumps({"model": model, "__author__": "MOCO", "matching_heuristics": True})
    )
    weights = read_weights(str(tmp_path / "official.pkl"))
    ours, theirs = (
        load_detection_config(f"pascal_voc_R_50_C4_24k{twin}", ["MODEL.RESNETS.NORM", "SyncBN"])
        for twin in ("", "_msra")
    )
    assert lint(flatten_config(ours), weights, world_size=8, reference=None) == []
    findings = {
        f.name: f.sentence
        for f in lint(flatten_config(theirs), weights, world_size=8, reference=None)
    }
    assert {"colour-order", "pixel-mean", "pixel-std", "stride"} <= set(findings)
    assert (
        "was trained with format RGB, but the config says INPUT.FORMAT BGR"
        in findings["colour-order"]
    )


def test_read_weights__none_is_random():
    weights = read_weights("")
    assert weights.kind == "random" and gap_of(detector(), weights) is None
    assert load(detector(), weights) == {
        "path": "",
        "kind": "random",
        "sha256": None,
        "stamp": None,
        "coverage": None,
    }


def save_detector(path, config="demo_R_18_FPN", overrides=()):
    cfg = load_detection_config(config, list(overrides))
    model = build_model(cfg)
    torch.save(
        {
            "format": "moco_transfer.finetune/1",
            "config": cfg.dump(),
            "model": model.state_dict(),
            "iteration": 3,
        },
        path,
    )
    return model


def test_read_weights__a_detector_says_what_it_was_trained_with(tmp_path):
    model = save_detector(
        tmp_path / "checkpoint_0000003.pth",
        overrides=["INPUT.FORMAT", "BGR", "MODEL.PIXEL_STD", "1.0,1.0,1.0"],
    )
    weights = read_weights(str(tmp_path / "checkpoint_0000003.pth"))
    assert weights.kind == "detector"
    assert weights.pixels["format"] == "BGR" and list(weights.pixels["pixel_std"]) == [
        1.0,
        1.0,
        1.0,
    ]
    other = detector()
    record = load(other, weights)
    assert (
        record["kind"] == "detector"
        and record["coverage"]["matched"] == record["coverage"]["expected"]
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_read_weights__a_detector_of_another_config_is_refused(tmp_path):
    save_detector(tmp_path / "a.pth", overrides=["MODEL.ROI_HEADS.NUM_CLASSES", "3"])
    weights = read_weights(str(tmp_path / "a.pth"))
    gap = gap_of(detector(), weights)
    assert (
        "It is a detector of another config" in gap
        and "roi_heads.box_predictor.cls_score.weight is (4, 256), expected (81, 256)" in gap
    )


def test_read_weights__msras_own_file_suits_the_msra_twin(tmp_path, monkeypatch):
    # detectron2://ImageNetPretrained/MSRA/R-50.pkl as it is published, Caffe2's names and fused
    # norms, in a mirror; values drawn here.
    blobs = {}
    generator = np.random.default_rng(0)
    for name, tensor in torchvision.models.resnet50().state_dict().items():
        if not name.startswith("fc.") and "running" not in name and "num_batches" not in name:
            blob = WRITE_NAME["caffe2"](name).replace("_gamma", "_s").replace("_beta", "_b")
            shape = tuple(tensor.shape)
            blobs[blob] = (
                generator.standard_normal(shape, dtype=np.float32)
                if blob == "conv1_w"
                else np.ones(shape, np.float32)
            )
    file = tmp_path / "detectron2" / "ImageNetPretrained" / "MSRA" / "R-50.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps(blobs, protocol=2))
    monkeypatch.setenv("MOCO_TRANSFER_MIRROR", str(tmp_path))
    cfg = load_detection_config("pascal_voc_R_50_C4_24k_msra")
    weights = read_weights(cfg.MODEL.WEIGHTS)
    assert (
        weights.kind == "supervised"
        and weights.pixels["format"] == "BGR"
        and weights.pixels["stride_in_1x1"] is True
    )
    assert lint(flatten_config(cfg), weights, world_size=8, reference=(16, 0.02)) == []
    plain = flatten_config(load_detection_config("pascal_voc_R_50_C4_24k"))
    found = lint(plain, weights, world_size=8, reference=(16, 0.02))
    assert {f.name for f in found} == {"colour-order", "pixel-mean", "pixel-std", "stride"}
    model = build_model(cfg)
    record = load(model, weights)
    assert (record["coverage"]["matched"], record["kind"], weights.row) == (
        265,
        "supervised",
        "supervised",
    )
    assert torch.equal(model.backbone.stem.conv1.weight, torch.from_numpy(blobs["conv1_w"]))


def as_start(weights, model, class_names):
    dataset = SimpleNamespace(class_names=class_names, keypoint_names=())
    return handover.as_start(weights, model.state_dict(), dataset)


def test_as_start__a_detector_of_other_classes_gives_all_but_its_predictor(tmp_path):
    three = ["MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    source = save_detector(tmp_path / "a.pth", overrides=three)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    torch.save(content | {"class_names": ["a", "b", "c"]}, tmp_path / "a.pth")
    weights = read_weights(str(tmp_path / "a.pth"))
    cases = {
        ("a", "b", "c"): {},
        ("x", "y", "z"): {"box predictor": "new: other class names (3 there, 3 here)"},
        ("a", "b"): {"box predictor": "new: other class names (3 there, 2 here)"},
    }
    for names, parts in cases.items():
        count = ["MODEL.ROI_HEADS.NUM_CLASSES", str(len(names))]
        model = build_model(load_detection_config("demo_R_18_FPN", count))
        drawn = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        start = as_start(weights, model, names)
        assert start.parts == parts and gap_of(model, start) is None
        record = load(model, start)
        assert record.get("parts", {}) == parts
        for key, tensor in model.state_dict().items():
            is_new = bool(parts) and key.startswith("roi_heads.box_predictor.")
            expected = drawn[key] if is_new else source.state_dict()[key]
            assert torch.equal(tensor, expected), key


def test_as_start__heads_that_one_of_them_lacks_are_named_and_the_backbone_is_whole(tmp_path):
    source = save_detector(tmp_path / "a.pth", overrides=["MODEL.MASK_ON", "True"])
    weights = read_weights(str(tmp_path / "a.pth"))
    boxes = detector()
    assert as_start(weights, boxes, ("a",)).parts == {
        "box predictor": "new: the file does not name its class names",
        "mask predictor": "left out: this config has none",
        "mask head": "left out: this config has none",
    }
    save_detector(tmp_path / "b.pth")
    start = as_start(read_weights(str(tmp_path / "b.pth")), source, ("a",))
    assert start.parts["mask head"] == "new: the file has none"
    # A C4 detector has its backbone elsewhere; half a backbone is none.
    save_detector(tmp_path / "c.pth", "pascal_voc_R_18_C4_320px")
    start = as_start(read_weights(str(tmp_path / "c.pth")), boxes, ("a",))
    assert "backbone.bottom_up.stem.conv1.weight" in gap_of(boxes, start)
    anchors = ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]"]
    other = build_model(load_detection_config("demo_R_18_FPN", anchors))
    assert as_start(weights, other, ("a",)).parts["RPN"] == "new: of another shape"


def zoo_file(path, *, author="Detectron2 Model Zoo"):
    """Write a detector as Detectron2's model zoo has it: FrozenBN, biases in the FPN, 80 classes,
    and the anchors among the weights.
    """
    words = ["MODEL.FPN.NORM", "", "MODEL.RESNETS.NORM", "FrozenBN"]
    model = build_model(load_detection_config("coco_R_50_FPN_1x_msra", words))
    arrays = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": author}))
    return arrays


def test_as_start__a_file_of_the_model_zoo_suits_the_msra_twin_alone(tmp_path):
    arrays = zoo_file(tmp_path / "model_final_280758.pkl")
    weights = read_weights(str(tmp_path / "model_final_280758.pkl"))
    assert (weights.kind, weights.pixels["format"]) == ("detector", "BGR")
    twin, plain = (
        load_detection_config(f"coco_R_50_FPN_1x{name}", ["MODEL.ROI_HEADS.NUM_CLASSES", "3"])
        for name in ("_msra", "")
    )
    assert lint(flatten_config(twin), weights, world_size=8, reference=None) == []
    found = lint(flatten_config(plain), weights, world_size=8, reference=None)
    assert {f.name for f in found} == {"colour-order", "pixel-mean", "pixel-std", "stride"}
    model = build_model(twin)
    start = as_start(weights, model, ("a", "b", "c"))
    assert set(start.parts) == {"box predictor", "mask predictor", "norms of the FPN"}
    assert gap_of(model, start) is None
    load(model, start)
    key = "backbone.fpn_lateral2.weight"
    assert torch.equal(model.state_dict()[key], torch.from_numpy(arrays[key]))
    # Another program's file does not say what its pixels are; Detectron2's config next to it does.
    zoo_file(tmp_path / "model_final.pth.pkl", author="somebody")
    unknown = read_weights(str(tmp_path / "model_final.pth.pkl"))
    found = lint(flatten_config(twin), unknown, world_size=8, reference=None)
    assert [f.name for f in found] == ["unknown-pixels"]
    (tmp_path / "config.yaml").write_text(twin.dump())
    known = read_weights(str(tmp_path / "model_final.pth.pkl"))
    assert known.pixels["stride_in_1x1"] is True
    assert lint(flatten_config(twin), known, world_size=8, reference=None) == []
