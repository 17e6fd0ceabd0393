"""Runs with masks as people have them, on either engine: run-length encoded by one tool or another,
with nothing set by the user; and masks that are none.

Seen red under: MASK_FORMAT left at polygon; taken from the test set; not taken from the run that is
evaluated; a user's own polygon overruled; boxes left out with their masks; objects without a pixel
scored as masks.
"""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as mask_api

from moco_transfer.cli.main import main
from moco_transfer.data import register_dataset
from moco_transfer.data.annotations.catalog import get_dataset, parse_dataset_flag
from moco_transfer.data.batches.transforms import TrainMapper
from moco_transfer.evaluate.coco_eval import CocoEvaluator
from moco_transfer.finetune.datasets import DataRequest, Reads, annotation_digests, read_data

WIDTH, HEIGHT = 96, 72
TINY = """SOLVER.MAX_ITER 3 SOLVER.STEPS (2,) SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.0025
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 DATALOADER.NUM_WORKERS 0 SEED 0
    TEST.PRECISE_BN.ENABLED False MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 16
    MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16"""
ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]


def rectangles(folder: Path, count: int = 4) -> dict:
    """Write images of two rectangles and return their annotations, with polygons."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(1, count + 1):
        pixels = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
        for category in (1, 2):
            w, h = (int(side) for side in rng.integers(18, 36, 2))
            x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
            pixels[y : y + h, x : x + w] = (220, 60, 50) if category == 1 else (50, 90, 220)
            about = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            shape = {"bbox": [x, y, w, h], "area": w * h, "segmentation": [polygon]}
            annotations.append({**about, **shape, "iscrowd": 0})
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        size = {"width": WIDTH, "height": HEIGHT}
        images.append({"id": number, "file_name": f"{number}.png", **size})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def encode(annotation: dict, *, compressed: bool) -> dict:
    """Return the RLE of an annotation's box."""
    x, y, w, h = annotation["bbox"]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    if compressed:
        rle = mask_api.encode(mask)
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    pixels = mask.ravel(order="F")
    ends = [*np.flatnonzero(np.diff(pixels)) + 1, len(pixels)]
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *ends]).tolist()}


def write(folder: Path, content: dict) -> str:
    """Write a json file and return what ``--dataset`` calls it."""
    (folder / "a.json").write_text(json.dumps(content))
    return f"coco:{folder / 'a.json'}:{folder / 'images'}"


def paths(place: str) -> dict[str, str]:
    return dict(zip(("json_file", "image_root"), place.split(":")[1:], strict=True))


def train(
    engine: str, name: str, place: str, output_dir: Path, *words: str, masks: bool = True
) -> int:
    """Return the exit status; ``words`` are options, then pairs KEY VALUE."""
    command = ["train", "--config-file", "own_R_18_FPN_small", "--engine", engine, "--force"]
    data = ["DATASETS.TRAIN", name, "DATASETS.TEST", name, "OUTPUT_DIR", str(output_dir)]
    data += ["MODEL.MASK_ON", str(masks)]
    return main([*command, "--dataset", f"{name}={place}", *words, *TINY.split(), *data])


def check_run(output_dir: Path, mask_format: str) -> dict:
    record = json.loads((output_dir / "results.json").read_text())
    assert all(math.isfinite(loss) for loss in record["last_losses"].values())
    assert "loss_mask" in record["last_losses"] and set(record["metrics"]) >= {"bbox", "segm"}
    config = yaml.safe_load((output_dir / "config.yaml").read_text())
    assert config["INPUT"]["MASK_FORMAT"] == mask_format
    return record


@pytest.mark.parametrize("engine", ENGINES)
def test_run_length_encoded_masks__train_with_nothing_set(tmp_path, engine):
    content = rectangles(tmp_path)
    for annotation in content["annotations"][::2]:  # the others keep their polygons
        compressed = annotation["id"] % 4 == 1
        annotation["segmentation"] = encode(annotation, compressed=compressed)
    place, run = write(tmp_path, content), tmp_path / "run"
    assert train(engine, f"{engine}_mixed", place, run) == 0
    record = check_run(run, "bitmask")
    (remark,) = [text for text in record["remarks"] if "INPUT.MASK_FORMAT" in text]
    assert "4 of the masks" in remark
    # An evaluation of the run reads no training set, and has the run's configuration.
    assert train(engine, f"{engine}_mixed", place, run, "--eval-only", "--resume") == 0
    (evaluation,) = run.glob("eval_*/results.json")
    assert json.loads(evaluation.read_text())["config_hash"] == record["config_hash"]


def test_mask_format__is_that_of_the_training_set(tmp_path):
    """Runs that are tested on other data stay comparable."""
    content = rectangles(tmp_path)
    register_dataset("plain", "coco", **paths(write(tmp_path, content)))
    for annotation in content["annotations"]:
        annotation["segmentation"] = encode(annotation, compressed=True)
    (tmp_path / "b.json").write_text(json.dumps(content))
    images = {"image_root": tmp_path / "images"}
    register_dataset("encoded", "coco", json_file=tmp_path / "b.json", **images)
    ask = partial(DataRequest, num_classes=2, tasks=("bbox", "segm"))
    assert read_data(ask(("plain",), ("encoded",)), Reads()).mask_format is None
    assert read_data(ask(("encoded",), ("plain",)), Reads()).mask_format == "bitmask"
    boxes = ask(("encoded",), ("plain",), tasks=("bbox",))
    assert read_data(boxes, Reads()).mask_format is None


def test_polygon__of_the_user_is_obeyed(tmp_path, capsys):
    content = rectangles(tmp_path)
    asked = ["--dry-run", "INPUT.MASK_FORMAT", "polygon"]
    assert train("torchvision", "polygons", write(tmp_path, content), tmp_path / "run", *asked) == 0
    assert "MASK_FORMAT" not in capsys.readouterr().out
    content["annotations"][0]["segmentation"] = encode(content["annotations"][0], compressed=True)
    assert train("torchvision", "polygons", write(tmp_path, content), tmp_path / "run", *asked) == 2
    sentence = capsys.readouterr().err
    assert all(fact in sentence for fact in ("1 of the 8", "1.png", "INPUT.MASK_FORMAT bitmask"))
    assert not (tmp_path / "run").exists()


def test_bitmask__of_the_user_takes_polygons(tmp_path):
    place, run = write(tmp_path, rectangles(tmp_path)), tmp_path / "run"
    assert train("torchvision", "boxes", place, run, "INPUT.MASK_FORMAT", "bitmask") == 0
    check_run(run, "bitmask")


def write_broken_masks(folder: Path) -> str:
    """One object with ``[[]]``, one with a line for a polygon, one that begins with a line, a crowd
    region without a mask, all else with polygons.
    """
    content = rectangles(folder)
    empty, line, mixed, crowd = content["annotations"][:4]
    empty["segmentation"] = [[]]
    line["segmentation"] = [[1, 1, 5, 5]]
    mixed["segmentation"].insert(0, [1, 1, 5, 5])
    crowd |= {"segmentation": [], "iscrowd": 1}
    return write(folder, content)


def check_counts(log: str, *, empty: int) -> None:
    for role in ("train", "test"):
        assert re.search(rf"{role} on: .* 4 images \({empty} empty\), 8 objects\n", log)
    assert len(re.findall(" 2 objects whose mask has no pixel", log)) == 2
    assert len(re.findall(" 1 crowd regions", log)) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_broken_masks__are_counted_and_the_run_ends_well(tmp_path, engine):
    place, run = write_broken_masks(tmp_path), tmp_path / "run"
    assert train(engine, f"{engine}_broken", place, run) == 0
    check_run(run, "polygon")
    log = (run / "log.txt").read_text()
    check_counts(log, empty=1)  # the first image has no mask to train on
    if engine == "torchvision":
        assert "1 of 4 training images have no box with a mask" in log


def test_broken_masks__do_not_matter_for_boxes(tmp_path, capsys):
    place, run = write_broken_masks(tmp_path), tmp_path / "run"
    assert train("torchvision", "broken", place, run, "--dry-run", masks=False) == 0
    check_counts(capsys.readouterr().out, empty=0)


def test_what_training_sees__is_what_is_scored(tmp_path):
    """Finding each box that training sees, and each mask, scores 100."""
    register_dataset("seen", "coco", **paths(write_broken_masks(tmp_path)))
    dataset = get_dataset("seen")
    evaluator, found = CocoEvaluator(dataset, ("bbox", "segm")), 0
    mapper = TrainMapper((HEIGHT,), WIDTH, flip="none")
    for record in dataset.records:
        item = mapper(record, np.random.default_rng(0))
        boxes = item["gt_boxes"]
        masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        output = {"boxes": boxes, "scores": torch.ones(len(boxes)), "classes": item["gt_classes"]}
        evaluator.process([record], [output | {"masks": masks}])
        found += len(boxes)
    metrics = evaluator.evaluate()
    assert found == 7, "all but the crowd region"
    assert metrics["bbox"]["AP"] == pytest.approx(100)
    assert metrics["segm"]["AR100"] == pytest.approx(100)


def test_crowd_regions_alone__one_sentence(tmp_path, capsys):
    content = rectangles(tmp_path)
    for annotation in content["annotations"]:
        annotation |= {"segmentation": encode(annotation, compressed=False), "iscrowd": 1}
    place, run = write(tmp_path, content), tmp_path / "run"
    assert train("torchvision", "crowds", place, run) == 2
    sentence = capsys.readouterr().err
    assert "Each of the 8 boxes" in sentence and "'iscrowd' to 0" in sentence
    assert not run.exists()


def test_digest__is_of_the_annotations_that_are_used(tmp_path):
    """Red under: run lengths as bytes, which JSON cannot hold; options left out of the digest."""
    content = rectangles(tmp_path)
    for annotation in content["annotations"]:
        annotation["segmentation"] = encode(annotation, compressed=False)
    place = write(tmp_path, content)
    flags = {"whole": "", "some": ":classes=red", "turned": ":exif=apply"}
    names = [parse_dataset_flag(f"{name}={place}{options}") for name, options in flags.items()]
    digests = annotation_digests([get_dataset(name) for name in names], Reads())
    assert len(set(digests.values())) == 3
