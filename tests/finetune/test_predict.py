"""predict: what a detector says of an image, what is drawn and written, and where a detector is
found.

Seen red under: no masks; right edge inclusive; labels may overlap; labels leave the image; names
    collide; channels
not swapped; threshold of the config; names of the run not read; the way out of a training named; a
shorter edge of 0 scaled to nothing.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from moco_transfer.cli.main import main
from moco_transfer.config import load_detection_config
from moco_transfer.data.batches.transforms import TestMapper
from moco_transfer.finetune import build_model, load_detector
from moco_transfer.finetune.predict import find_images
from moco_transfer.runtime.errors import InputError, MissingFileError

NAMES = ["ring", "cross", "star"]
TINY = {
    "MODEL.ROI_HEADS.NUM_CLASSES": "3",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.FORMAT": "BGR",  # the image files are RGB: an order that is mixed up shows
    "TEST.DETECTIONS_PER_IMAGE": "6",
}


KEYPOINTS = ["nose", "left_eye", "right_eye"]


def save_run(folder, *, header=True, masks=False, points=False, name="checkpoint_0000007.pth"):
    """Write a run folder with a detector of random weights whose scores and boxes depend on the
    image; return config and model.
    """
    overrides = {**TINY, "MODEL.MASK_ON": str(masks), "MODEL.ROI_MASK_HEAD.CONV_DIM": "8"}
    overrides |= {"MODEL.KEYPOINT_ON": str(points), "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": "(8,)"}
    overrides["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] = str(len(KEYPOINTS))
    cfg = load_detection_config(
        "demo_R_18_FPN", [word for pair in overrides.items() for word in pair]
    )
    torch.manual_seed(3)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(40)
        model.roi_heads.box_predictor.cls_score.bias[-1] = -2.0  # background
    folder.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "iteration": 7}
    if header:
        state |= {"format": "moco_transfer.finetune/1", "config": cfg.dump(), "class_names": NAMES}
        state |= {"keypoints": KEYPOINTS, "skeleton": [[0, 1], [0, 2]]} if points else {}
    else:  # Detectron2's run folder
        (folder / "config.yaml").write_text(cfg.dump())
    torch.save(state, folder / name)
    (folder / "last_checkpoint").write_text(name)
    return cfg, model


def write_image(path, width=90, height=70, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return (folder, *save_run(folder))


@pytest.fixture(scope="module")
def mask_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask_run")
    return (folder, *save_run(folder, masks=True))


def test_load_detector__says_what_the_model_says_in_an_evaluation(run, tmp_path):
    folder, cfg, model = run
    image = write_image(tmp_path / "a.png")
    item = TestMapper(64, cfg.INPUT.MAX_SIZE_TEST, "BGR")(
        {"file_name": str(image), "height": 70, "width": 90, "image_id": 1}
    )
    with torch.no_grad():
        expected = model([item])[0]
    assert len(expected["scores"]) > 2
    detector = load_detector(folder, score_threshold=0.05, device="cpu")
    found = detector(image)
    for key in ("boxes", "scores", "classes"):
        np.testing.assert_array_equal(found[key], expected[key].numpy())
    for key, values in detector(np.asarray(Image.open(image))).items():  # pixels are RGB
        np.testing.assert_array_equal(values, found[key])
    limit = float(found["scores"][2])
    assert found["scores"][0] > found["scores"][1] > limit
    assert (
        len(load_detector(folder, score_threshold=limit)(image)["scores"]) == 2
    )  # more than, not as much as
    assert detector.class_names == tuple(NAMES)


def test_load_detector__of_a_part_that_detectron2_alone_has_does_not_name_a_flag_that_predict_lacks(
    tmp_path, capsys
):
    cfg, _ = save_run(tmp_path / "run")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    file = tmp_path / "run" / "checkpoint_0000007.pth"
    torch.save(torch.load(file, weights_only=True) | {"config": cfg.dump()}, file)
    image = write_image(tmp_path / "a.png")
    assert (
        main(["predict", str(tmp_path / "run"), str(image), "--output", str(tmp_path / "out")]) == 2
    )
    error = capsys.readouterr().err
    assert (
        "does not implement MODEL.ROI_HEADS.NAME 'CascadeROIHeads'" in error
        and error.count("\n") == 1
    )
    assert (
        "Use --engine" not in error
        and "Only Detectron2 runs such a detector" in error
        and not (tmp_path / "out").exists()
    )


def test_load_detector__min_size_test_0_takes_the_image_as_it_is(tmp_path):
    folder = tmp_path / "run"
    cfg, model = save_run(folder)
    mapper = TestMapper(0, cfg.INPUT.MAX_SIZE_TEST, "BGR")
    detector = dataclasses.replace(load_detector(folder, score_threshold=0.01), mapper=mapper)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    with torch.no_grad():
        image = torch.from_numpy(
            np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))
        ).float()
        expected = detector.model([{"image": image, "height": 70, "width": 90}])[0]
    np.testing.assert_array_equal(detector(pixels)["boxes"], expected["boxes"].numpy())


def test_load_detector__a_checkpoint_and_detectron2s_run_folder(run, tmp_path):
    folder, _, model = run
    assert load_detector(folder / "checkpoint_0000007.pth").source == str(
        folder / "checkpoint_0000007.pth"
    )
    save_run(tmp_path / "d2", header=False, name="model_final.pth")
    detector = load_detector(tmp_path / "d2")
    assert detector.class_names == ("class 0", "class 1", "class 2")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            model.state_dict().values(), detector.model.state_dict().values(), strict=True
        )
    )
    assert load_detector(tmp_path / "d2", class_names=["a", "b", "c"]).class_names == (
        "a",
        "b",
        "c",
    )


def test_load_detector__what_is_none(run, tmp_path):
    folder = run[0]
    with pytest.raises(
        MissingFileError, match="nowhere is no file, and no folder with last_checkpoint; expected"
    ):
        load_detector(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match="no folder with last_checkpoint; expected the OUTPUT_DIR of moco-transfer"
    ):
        load_detector(tmp_path)
    torch.save(
        {"state_dict": {"module.encoder_q.conv1.weight": torch.zeros(1)}}, tmp_path / "moco.pth"
    )
    with pytest.raises(InputError, match=r"moco\.pth"):
        load_detector(tmp_path / "moco.pth")
    torch.save(
        {"model": torch.load(folder / "checkpoint_0000007.pth")["model"]}, tmp_path / "bare.pth"
    )
    with pytest.raises(InputError, match="bare.pth does not hold its config.*--config-file FILE"):
        load_detector(tmp_path / "bare.pth")
    with pytest.raises(InputError, match="bare.pth covers .* It is a detector of another config"):
        load_detector(tmp_path / "bare.pth", config_file="demo_R_18_FPN")
    with pytest.raises(InputError, match="has 3 classes, but 2 names are given"):
        load_detector(folder, class_names=["a", "b"])
    with pytest.raises(
        InputError, match="score threshold must be at least 0 and less than 1, got 50"
    ):
        load_detector(folder, score_threshold=50)
    with pytest.raises(InputError, match=r"must be RGB uint8 \(H, W, 3\), got float32 \(3, 4, 4\)"):
        load_detector(folder)(np.zeros((3, 4, 4), np.float32))


def test_predict__command_line(run, tmp_path, capsys):
    folder = run[0]
    images = tmp_path / "images"
    write_image(images / "a.jpg", seed=1)
    write_image(images / "deep" / "a.jpg", seed=2)
    write_image(images / "b.bmp", seed=3)
    (images / "cut.jpg").write_bytes((images / "a.jpg").read_bytes()[:300])
    (images / "notes.txt").write_text("no image")
    output = images / "drawn"
    words = [
        "predict",
        str(folder),
        str(images),
        "--output",
        str(output),
        "--threshold",
        "0.05",
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert (
        "3 images drawn" in said
        and "Skipped, because they cannot be read: 1" in said
        and "cut.jpg" in said
    )
    record = json.loads((output / "detections.json").read_text())
    assert record["classes"] == NAMES and record["score_threshold"] == 0.05
    assert [entry["drawn"] for entry in record["images"]] == ["a.jpg", "b.bmp.png", "deep/a.jpg"]
    assert [skipped["file"] for skipped in record["skipped"]] == [str(images / "cut.jpg")]
    detector = load_detector(folder, score_threshold=0.05, device="cpu")
    for entry in record["images"]:
        found = detector(entry["file"])
        assert (entry["width"], entry["height"]) == (90, 70) and len(entry["detections"]) == len(
            found["scores"]
        ) > 0
        for said, box, score, index in zip(
            entry["detections"], found["boxes"], found["scores"], found["classes"], strict=True
        ):
            np.testing.assert_allclose(said["box"], box, atol=0.006)
            assert abs(said["score"] - score) < 1e-5 and said["class"] == NAMES[index]
        drawn = np.asarray(Image.open(output / entry["drawn"]).convert("RGB"))
        assert drawn.shape == (70, 90, 3)
    assert (
        main(words) == 0
    )  # its own drawings, which lie below the folder, are not taken for images
    assert len(json.loads((output / "detections.json").read_text())["images"]) == 3


def test_predict__bad_input_is_one_sentence(run, tmp_path, capsys):
    folder = str(run[0])
    image = write_image(tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.jpg").write_bytes(b"nothing")

    def refused(*words):
        assert main(["predict", folder, *map(str, words)]) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert "Traceback" not in message
        return message

    assert "would overwrite the image" in refused(image, "--output", tmp_path)
    assert "holds no image" in refused(tmp_path / "empty", "--output", tmp_path / "out")
    assert "b.jpg does not exist" in refused(tmp_path / "b.jpg", "--output", tmp_path / "out")
    assert "None of the 1 images can be read" in refused(
        tmp_path / "cut.jpg", "--output", tmp_path / "out"
    )
    assert not (tmp_path / "out" / "detections.json").exists()


def test_find_images__every_drawing_has_a_name_of_its_own(tmp_path):
    files = [
        write_image(tmp_path / name)
        for name in ("one/a.jpg", "two/a.jpg", "two/a.png", "two/a.bmp")
    ]
    found = find_images(
        [str(files[0]), str(tmp_path / "two"), str(files[0])], str(tmp_path / "out")
    )
    assert [p.drawn for p in found] == ["a.jpg", "a.bmp.png", "a-2.jpg", "a.png"]
    assert [p.path for p in found] == [str(f) for f in (files[0], files[3], files[1], files[2])]


def test_predict__masks_are_written_as_coco_rle(mask_run, tmp_path):
    folder = mask_run[0]
    image = write_image(tmp_path / "a.png")
    assert (
        main(
            [
                "predict",
                str(folder),
                str(image),
                "--output",
                str(tmp_path / "out"),
                "--threshold",
                "0.05",
            ]
        )
        == 0
    )
    (entry,) = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    found = load_detector(folder, score_threshold=0.05)(image)
    assert found["masks"].shape == (len(found["scores"]), 70, 90) and found["masks"].any()
    decoded = np.stack(
        [mask_api.decode(said["segmentation"]).astype(bool) for said in entry["detections"]]
    )
    np.testing.assert_array_equal(decoded, found["masks"])


def test_predict__keypoints_are_written_and_drawn_with_the_skeleton_of_the_run(tmp_path):
    folder, image = tmp_path / "run", write_image(tmp_path / "a.png")
    save_run(folder, points=True)
    words = ["predict", str(folder), str(image), "--output", str(tmp_path / "out")]
    assert main([*words, "--threshold", "0.05", "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert record["keypoints"] == KEYPOINTS
    detector = load_detector(folder, score_threshold=0.05, device="cpu")
    assert detector.skeleton == ((0, 1), (0, 2))
    found = detector(image)
    assert found["keypoints"].shape == (len(found["scores"]), 3, 3) and len(found["scores"])
    said = [entry["keypoints"] for entry in record["images"][0]["detections"]]
    np.testing.assert_allclose(said, found["keypoints"], atol=0.006)
    boxes = found["boxes"][:, None, :]  # a keypoint lies in its object's box
    assert (found["keypoints"][..., :2] >= boxes[..., :2]).all()
    assert (found["keypoints"][..., :2] <= boxes[..., 2:]).all()


def test_load_detector__keypoints_of_detectron2s_checkpoint_have_no_skeleton(tmp_path):
    save_run(tmp_path / "run", points=True, header=False)
    detector = load_detector(tmp_path / "run", score_threshold=0.05)
    assert detector.skeleton == detector.keypoint_names == ()
    assert detector(write_image(tmp_path / "a.png"))["keypoints"].shape[1:] == (3, 3)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """Return a run folder with a segmenter of random weights, and the model."""
    folder = tmp_path_factory.mktemp("segmenter")
    words = "MODEL.SEM_SEG_HEAD.NUM_CLASSES 3 MODEL.SEM_SEG_HEAD.CONVS_DIM 8 INPUT.MIN_SIZE_TEST 64"
    cfg = load_detection_config("voc_R_18_FCN_small", words.split())
    torch.manual_seed(3)
    model = build_model(cfg).eval()
    names = ["background", "ring", "cross"]
    state = {"model": model.state_dict(), "iteration": 7, "class_names": names}
    state |= {"format": "moco_transfer.finetune/1", "config": cfg.dump()}
    torch.save(state, folder / "checkpoint_0000007.pth")
    (folder / "last_checkpoint").write_text("checkpoint_0000007.pth")
    return folder, model


def test_segmenter__classes_of_pixels_at_the_images_size(segmenter, tmp_path, capsys):
    folder, model = segmenter
    file = write_image(tmp_path / "images/a.png")
    found = load_detector(folder, device="cpu")(str(file))
    assert [*found] == ["sem_seg"] and found["sem_seg"].shape == (70, 90)
    image = TestMapper(64, 384, "RGB").prepare(np.asarray(Image.open(file)))
    (expected,) = model([{"image": image, "height": 70, "width": 90}])
    assert np.array_equal(found["sem_seg"], expected["sem_seg"].numpy())
    out = tmp_path / "out"
    assert main(["predict", str(folder), str(file), "--output", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    (entry,) = json.loads((out / "classes.json").read_text())["images"]
    again = np.full((70, 90), -1)
    for each in entry["classes"]:
        mask = mask_api.decode(each["segmentation"]) == 1
        assert mask.sum() == each["pixels"] and f"{each['class']} " in said
        again[mask] = each["class_index"]
    assert np.array_equal(again, found["sem_seg"])
    drawn, pixels = np.asarray(Image.open(out / "a.png")), np.asarray(Image.open(file))
    changed = (drawn != pixels).any(axis=2)
    assert changed[found["sem_seg"] > 0].mean() > 0.9, "tinted"


def test_segmenter__has_no_threshold(segmenter, tmp_path):
    with pytest.raises(InputError, match="without a score"):
        load_detector(segmenter[0], score_threshold=0.5, device="cpu")


def test_predict__coco_json_is_a_data_set_and_its_annotations_are_results(mask_run, tmp_path):
    images = [write_image(tmp_path / "images" / f"{n}.png", seed=n) for n in range(3)]
    (tmp_path / "images" / "some.txt").write_text(f"2.png\n\n{images[0]}\n")
    output, listed = tmp_path / "out", str(tmp_path / "images" / "some.txt")
    words = ["predict", str(mask_run[0]), listed, "--threshold", "0.05", "--output", str(output)]
    assert main(words) == 0
    ours = json.loads((output / "detections.json").read_text())
    assert [entry["file"] for entry in ours["images"]] == [str(images[2]), str(images[0])]
    truth = COCO(str(output / "coco.json"))
    assert [truth.imgs[n]["file_name"] for n in (1, 2)] == [str(images[2]), str(images[0])]
    results = truth.loadRes(json.loads((output / "coco.json").read_text())["annotations"])
    for number, entry in enumerate(ours["images"], start=1):
        found = results.loadAnns(results.getAnnIds(imgIds=[number]))
        assert len(found) == len(entry["detections"]) > 0
        for a, b in zip(found, entry["detections"], strict=True):
            x, y, w, h = a["bbox"]
            assert [x, y, x + w, y + h] == pytest.approx(b["box"], abs=0.02)
            assert truth.cats[a["category_id"]]["name"] == b["class"] and a["score"] == b["score"]
            assert truth.annToMask(a).shape == (70, 90)
    (tmp_path / "images" / "bad.txt").write_text("2.png\nabsent.png\n")
    words[2] = str(tmp_path / "images" / "bad.txt")
    with pytest.raises(MissingFileError, match=r"names 1 of 2 images that do not exist.*absent"):
        find_images(words[2:3], str(output))
