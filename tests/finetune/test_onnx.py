"""Detectors and segmenters as ONNX: onnxruntime finds in real images what the network finds.

Networks are drawn at random, with weights large enough for scores and boxes to differ. The images'
sizes are not those of the export, nor multiples of 32. Seen red under: proposals
not clipped; RoIAlign without its half-pixel offset; NMS over all classes together; masks pasted
half a cell away; logits aligned at the pixels' edges; the threshold frozen.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from moco_transfer.cli.main import main
from moco_transfer.config import load_detection_config
from moco_transfer.finetune import build_model, load_detector
from moco_transfer.finetune.torchvision_engine.onnx_export import check_onnx
from moco_transfer.runtime.errors import InputError

for _name in ("onnx", "onnxruntime"):
    pytest.importorskip(_name, reason=f"{_name} is not installed (extra onnx)")

import onnxruntime  # noqa: E402

COMMON = "MODEL.RPN.POST_NMS_TOPK_TEST 100 TEST.DETECTIONS_PER_IMAGE 20 INPUT.FORMAT BGR"
CASES = {  # config, overrides
    "fpn": ("coco_R_18_FPN_320px", f"{COMMON} MODEL.MASK_ON False"),
    "fpn with masks": ("coco_R_18_FPN_320px", COMMON),
    "c4": ("coco_R_18_C4_320px", COMMON),
    "fcn": ("voc_R_18_FCN_small", "INPUT.FORMAT BGR"),
}
THRESHOLD = 0.02


def save_run(folder, config: str, overrides: str) -> None:
    """Write a run folder whose network finds something in every image."""
    words = [*overrides.split(), "INPUT.MIN_SIZE_TEST", "200", "INPUT.MAX_SIZE_TEST", "300"]
    cfg = load_detection_config(config, words)
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
        if not config.endswith("FCN_small"):
            model.roi_heads.box_predictor.cls_score.weight.mul_(15)
            model.roi_heads.box_predictor.bbox_pred.weight.mul_(50)
            model.proposal_generator.rpn_head.objectness_logits.weight.mul_(30)
            model.proposal_generator.rpn_head.anchor_deltas.weight.mul_(10)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"class {i}" for i in range(21 if "FCN" in config else 80)]
    state = {"format": "moco_transfer.finetune/1", "config": cfg.dump(), "class_names": names}
    torch.save(state | {"model": model.state_dict(), "iteration": 7}, folder / "model.pth")
    (folder / "last_checkpoint").write_text("model.pth")


@pytest.fixture(scope="module")
def images(shared_data) -> list:
    """Three real images of different shapes."""
    files = sorted((shared_data / "coco").rglob("*.jpg"))
    shapes = {Image.open(file).size: file for file in files}
    return [shapes[size] for size in sorted(shapes)[:: max(1, len(shapes) // 3)][:3]]


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    """A run folder and its ONNX file, as the command line writes it."""
    folder = tmp_path_factory.mktemp("onnx")
    save_run(folder / "run", *CASES[request.param])
    words = ["convert", str(folder / "run"), str(folder / "detector.onnx"), "--to", "onnx"]
    assert main(words) == 0
    return folder


def prepared(detector, file) -> torch.Tensor:
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return detector.mapper.prepare(np.ascontiguousarray(pixels[:, :, ::-1]))


@pytest.mark.slow
def test_onnx__finds_what_the_network_finds(exported, images):
    session = onnxruntime.InferenceSession(exported / "detector.onnx")
    outputs = [output.name for output in session.get_outputs()]
    segments, counts = outputs == ["sem_seg"], []
    detector = load_detector(exported / "run", score_threshold=None if segments else THRESHOLD)
    for file in images:
        image = prepared(detector, file)
        with torch.inference_mode():
            expected = detector.model([{"image": image}])[0]
        inputs = {"image": image.float().numpy()}
        if not segments:
            inputs["score_threshold"] = np.array(THRESHOLD, np.float32)
        found = dict(zip(outputs, session.run(None, inputs), strict=True))
        assert set(found) == set(expected)
        if segments:
            assert (found["sem_seg"] != expected["sem_seg"].numpy()).mean() < 1e-4
            counts.append(len(np.unique(found["sem_seg"])))
            continue
        counts.append(len(found["boxes"]))
        np.testing.assert_array_equal(found["classes"], expected["classes"].numpy())
        np.testing.assert_allclose(found["boxes"], expected["boxes"].numpy(), atol=0.02)
        np.testing.assert_allclose(found["scores"], expected["scores"].numpy(), atol=1e-4)
        if "masks" in found:
            assert (found["masks"] != expected["masks"].numpy()).mean() < 1e-5
            assert expected["masks"].any()
    assert min(counts) > 2, counts


@pytest.mark.slow
def test_onnx__an_image_without_objects(exported):
    session = onnxruntime.InferenceSession(exported / "detector.onnx")
    inputs = {"image": np.zeros((3, 77, 130), np.float32)}
    if len(session.get_outputs()) == 1:
        assert session.run(None, inputs)[0].shape == (77, 130)
        return
    inputs["score_threshold"] = np.array(1.0, np.float32)
    boxes, scores, classes, *masks = session.run(None, inputs)
    assert boxes.shape == (0, 4) and scores.shape == classes.shape == (0,)
    assert all(mask.shape == (0, 77, 130) for mask in masks)


@pytest.mark.slow
def test_example__of_the_docs(exported, images, repository, tmp_path, monkeypatch):
    if len(onnxruntime.InferenceSession(exported / "detector.onnx").get_outputs()) == 1:
        pytest.skip("the example is of a detector")
    text = (repository / "docs" / "engines.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?onnxruntime.*?)^```", text, re.M | re.S)
    monkeypatch.chdir(exported)
    image = Image.open(images[1]).convert("RGB")
    image.save(exported / "image.png")
    names: dict = {}
    exec(block.replace("image.jpg", "image.png").replace("0.5,", f"{THRESHOLD},"), names)
    found = load_detector(exported / "run", score_threshold=THRESHOLD)("image.png")
    assert len(names["boxes"]) == len(found["boxes"]) > 2
    np.testing.assert_allclose(names["boxes"], found["boxes"], atol=0.05)
    assert names["names"] == [f"class {index}" for index in found["classes"]]
    assert json.loads(names["about"]["classes"])[79] == "class 79"


@pytest.mark.slow
def test_onnx__a_file_of_other_weights_is_noticed(exported, images):
    detector = load_detector(exported / "run")
    with torch.no_grad():
        for name, weight in detector.model.named_parameters():
            if "cls_score" in name or "sem_seg_head.predictor" in name:
                weight[: len(weight) // 2] *= 1.5
    content = (exported / "detector.onnx").read_bytes()
    with pytest.raises(InputError, match=r"\d+ of \d+ (detections|pixels)"):
        check_onnx(content, detector.model, [prepared(detector, images[0]).float()])


@pytest.mark.parametrize(
    ("config", "overrides", "said"),
    [
        ("coco_keypoint_R_18_FPN_320px", "MODEL.ROI_HEADS.NUM_CLASSES 80", "keypoint head"),
        ("voc_R_18_FCN_small", "TEST.SLIDING_WINDOW.SIZE 99 TEST.SLIDING_WINDOW.STRIDE 9", "99"),
    ],
)
def test_onnx__what_it_cannot_express(config, overrides, said, tmp_path, capsys):
    save_run(tmp_path / "run", config, overrides)
    words = ["convert", str(tmp_path / "run"), str(tmp_path / "a.onnx"), "--to", "onnx"]
    assert main(words) == 2 and said in capsys.readouterr().err
    assert main([*words, "--encoder", "k"]) == 2 and "--encoder" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()
