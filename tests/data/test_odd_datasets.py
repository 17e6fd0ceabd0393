"""Data sets with seeded oddities: read as their plain twin, or refused in one sentence; and one set
in three formats.

Seen red under: a byte order mark kept; backslashes kept; YOLO's labels looked for in one case; ids
as floats; VOC's pixels counted from 0; 16 bits clipped at 255; the EXIF tag not applied to pixels,
to boxes or to masks; normalised boxes believed; run lengths read row by row.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_datasets import write_pair
from PIL import Image
from pycocotools import mask as mask_api

from moco_transfer.data.annotations.catalog import get_dataset, parse_dataset_flag
from moco_transfer.data.annotations.check import check_dataset
from moco_transfer.data.batches.transforms import read_and_check
from moco_transfer.evaluate.coco_eval import CocoEvaluator
from moco_transfer.evaluate.voc_eval import VocEvaluator
from moco_transfer.finetune.datasets import DataRequest, Reads, make_evaluator, read_data
from moco_transfer.finetune.lint import PlanError
from moco_transfer.runtime.errors import InputError

# With normalised boxes, run lengths and images that are both turned and TIFF.
SHORT = (*range(30), 40, 46, 58, 94, 133, 141, 160, 190)
LONG = sorted(set(range(300)) - set(SHORT))


def _objects(records):
    """Return size, boxes, classes and crowds of each image, in the order of names."""
    ordered = sorted(records, key=lambda record: Path(record["file_name"]).name)
    return [
        (
            record["width"],
            record["height"],
            np.round([a["bbox"] for a in record["annotations"]], 6).tolist(),
            [(a["category_id"], a["iscrowd"]) for a in record["annotations"]],
        )
        for record in ordered
    ]


def _check_pixels(records, twins):
    """Check that both have the same pixels, but for JPEG's loss, and each mask its box."""
    ordered = (sorted(rs, key=lambda r: Path(r["file_name"]).name) for rs in (records, twins))
    for record, twin in zip(*ordered, strict=True):
        pixels = [read_and_check(r, "RGB").astype(int) for r in (record, twin)]
        assert np.abs(pixels[0] - pixels[1]).mean() < 4
        for annotation in record["annotations"]:
            if isinstance(mask := annotation.get("segmentation"), dict):
                x, y, width, height = mask_api.toBbox(mask)
                assert [x, y, x + width, y + height] == annotation["bbox"]
                assert mask_api.area(mask) == width * height


def _score_of_perfect_detections(dataset, folder):
    evaluator = make_evaluator(dataset, ("bbox",), folder)
    for record in dataset.records:
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        output = {
            "boxes": torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4),
            "scores": torch.full((len(objects),), 0.9),
            "classes": torch.tensor([a["category_id"] for a in objects], dtype=torch.long),
        }
        evaluator.process([record], [output])
    return evaluator.evaluate()


def _read(name):
    return read_data(DataRequest((name,), (name,), None, ("bbox",)), Reads()).train_sets[0]


def _check(folder, seed, catalogue=None):
    pair = write_pair(folder, seed)
    odd, plain = parse_dataset_flag(pair.odd), parse_dataset_flag(pair.plain)
    about = f"seed {seed}, {pair.oddities}, {pair.fault or 'no fault'}"
    if pair.fault:
        with pytest.raises(InputError) as error:
            for record in _read(odd).records:
                read_and_check(record, "RGB")
            pytest.fail(f"{about}: was read")
        faults = [str(finding) for finding in getattr(error.value, "findings", [error.value])]
        assert all("\n" not in fault for fault in faults), (about, faults)
        assert str(folder) in str(error.value), (about, faults)
        assert not check_dataset(odd).is_usable, about
        return
    try:
        dataset = _read(odd)
    except (InputError, PlanError) as error:
        pytest.fail(f"{about}: {error}")
    twin = _read(plain)
    assert _objects(dataset.records) == _objects(twin.records), about
    _check_pixels(dataset.records, twin.records)
    assert check_dataset(odd).problems == check_dataset(plain).problems == [], about
    scores = [_score_of_perfect_detections(d, folder) for d in (dataset, twin)]
    assert scores[0]["bbox"] == pytest.approx(scores[1]["bbox"]), about
    assert scores[0]["bbox"]["AP"] == pytest.approx(100), about
    if catalogue:
        assert _objects(catalogue(odd)) == _objects(twin.records), about


@pytest.mark.parametrize("seed", SHORT)
def test_odd_datasets__are_read_as_their_twin_or_refused(tmp_path, seed):
    _check(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", LONG)
def test_odd_datasets__three_hundred(tmp_path, seed):
    _check(tmp_path, seed)


@pytest.mark.detectron2
def test_odd_datasets__detectron2_reads_the_same(tmp_path):
    from detectron2.data import DatasetCatalog

    from moco_transfer.finetune.detectron2_engine.datasets import add_datasets

    def of_detectron2(name):
        add_datasets([name])
        records = DatasetCatalog.get(name)
        DatasetCatalog.remove(name)
        return records

    for seed in SHORT:
        _check(tmp_path / str(seed), seed, of_detectron2)


def _write_in_three_formats(root, rng):
    """Write 12 images as COCO's, VOC's and YOLO's, and return the flags."""
    images, annotations, rows = [], [], {}
    for number in range(1, 13):
        name, width, height = (
            f"{number:02d}",
            int(rng.integers(80, 300)),
            int(rng.integers(80, 300)),
        )
        for folder in ("images", "JPEGImages"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (width, height)).save(root / folder / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "width": width, "height": height})
        for _ in range(int(rng.integers(1, 7))):
            x, y = rng.integers(0, [width - 60, height - 60]).tolist()
            w, h = rng.integers(4, 60, 2).tolist()
            cls = int(rng.integers(0, 3))
            box = {"bbox": [x, y, w, h], "area": w * h, "image_id": number, "category_id": cls + 1}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **box})
            rows.setdefault(name, []).append((cls, x, y, w, h, width, height))
    categories = [{"id": i + 1, "name": c} for i, c in enumerate("abc")]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "set.json").write_text(json.dumps(content))
    for folder in ("labels", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, objects in rows.items():
        lines = [
            f"{c} {(x + w / 2) / width!r} {(y + h / 2) / height!r} {w / width!r} {h / height!r}"
            for c, x, y, w, h, width, height in objects
        ]
        (root / "labels" / f"{name}.txt").write_text("\n".join(lines))
        nodes = [
            f"<object><name>{'abc'[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for c, x, y, w, h, *_ in objects
        ]
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation>{''.join(nodes)}</annotation>"
        )
    (root / "ImageSets/Main/train.txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text("train: images\nnames: [a, b, c]\n")
    coco = f"as_coco=coco:{root}/set.json:{root}/images"
    return coco, f"as_voc=voc:{root}:train:a,b,c", f"as_yolo=yolo:{root}/data.yaml:train"


def test_one_set_in_three_formats__has_the_same_ap(tmp_path):
    rng = np.random.default_rng(5)
    sets = [get_dataset(parse_dataset_flag(f)) for f in _write_in_three_formats(tmp_path, rng)]
    outputs = {}
    for record in sets[0].records:
        truth = np.array([a["bbox"] for a in record["annotations"]])
        boxes = np.concatenate([truth, truth[:1], truth + 30]) + rng.normal(0, 3, 4)
        boxes = np.maximum(boxes, 0)
        classes = [*(a["category_id"] for a in record["annotations"])]
        classes = np.array([*classes, classes[0], *classes]) + (rng.random(len(boxes)) < 0.2)
        outputs[Path(record["file_name"]).stem] = {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "scores": torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
            "classes": torch.tensor(classes % 3),
        }
    for make in (CocoEvaluator, VocEvaluator):
        scores = []
        for dataset in sets:
            evaluator = make(dataset)
            for record in dataset.records:
                evaluator.process([record], [outputs[Path(record["file_name"]).stem]])
            scores.append(evaluator.evaluate()["bbox"])
        assert 5 < scores[0]["AP"] < 95
        assert scores[1] == pytest.approx(scores[0], rel=0, abs=1e-9)
        assert scores[2] == pytest.approx(scores[0], rel=0, abs=1e-9)
