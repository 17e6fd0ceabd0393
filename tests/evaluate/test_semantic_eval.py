"""IoU and accuracy against Detectron2's SemSegEvaluator, cityscapesscripts' pixel-level evaluation
(which counts a class without a labelled pixel as 0 where it is predicted), sets of pixels, and one
process against two.

Seen red under: ignored pixels counted; classes without a labelled pixel as 0 in the mean; rows and
columns of the confusion matrix exchanged; mIoU weighted by pixels; only this process's images
scored.
"""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api
from torch import distributed as dist
from torch import multiprocessing as mp

from moco_transfer.data.annotations.catalog import DetectionDataset
from moco_transfer.data.annotations.records import Contents
from moco_transfer.evaluate.semantic_eval import SemanticEvaluator
from moco_transfer.runtime.errors import InputError

SEEDS = range(4)
SIZE = (37, 53)


def make_set(folder: Path, seed: int, names: tuple[str, ...], absent: tuple[int, ...] = ()):
    """Return a data set of 6 random label images, and a prediction for each that is mostly right.

    Images differ in size and in the classes that they show; a fifth of the pixels is ignored.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records, outputs = [], []
    for number in range(6):
        size = (SIZE[0] + number, SIZE[1] - number)
        shown = rng.choice(len(names), size=rng.integers(1, len(names) + 1), replace=False)
        truth = rng.choice(np.setdiff1d(shown, absent) if len(shown) > 2 else [0, 1], size)
        predicted = np.where(rng.random(size) < 0.6, truth, rng.integers(0, len(names), size))
        truth[rng.random(size) < 0.2] = 255
        file = folder / f"{number}.png"
        Image.fromarray(truth.astype(np.uint8)).save(file)
        names_of_files = {"file_name": f"{number}.jpg", "sem_seg_file_name": str(file)}
        sizes = {"height": size[0], "width": size[1]}
        names_of_files["sem_seg_ids"] = (*range(len(names)),)
        records.append({"image_id": f"{number}", **names_of_files, **sizes, "annotations": []})
        outputs.append({"sem_seg": torch.from_numpy(predicted)})
    dataset = DetectionDataset("made", "semantic", str(folder), classes=names)
    contents = Contents(records, names, tuple(range(len(names))))
    dataset.__dict__["_contents"] = contents  # instead of reading files
    return dataset, outputs


def evaluate(dataset, outputs, output_file=None):
    """Return the evaluator and its metrics."""
    evaluator = SemanticEvaluator(dataset, output_file)
    for record, output in zip(dataset.records, outputs, strict=True):
        evaluator.process([record], [output])
    return evaluator, evaluator.evaluate()["sem_seg"]


def by_sets_of_pixels(dataset, outputs):
    """Return the metrics from what their names say: sets of pixels of each class."""
    pixels = []
    for number, (record, output) in enumerate(zip(dataset.records, outputs, strict=True)):
        truth = np.asarray(Image.open(record["sem_seg_file_name"]))
        for place in np.argwhere(truth != 255).tolist():
            at = tuple(place)
            pixels.append(((number, *at), int(truth[at]), int(output["sem_seg"][at])))
    ious, accuracies, sizes = {}, {}, {}
    for c, name in enumerate(dataset.class_names):
        true = {place for place, t, _ in pixels if t == c}
        found = {place for place, _, p in pixels if p == c}
        if true:
            ious[name] = 100 * len(true & found) / len(true | found)
            accuracies[name], sizes[name] = 100 * len(true & found) / len(true), len(true)
    return {
        "mIoU": sum(ious.values()) / len(ious),
        "fwIoU": sum(ious[name] * sizes[name] for name in ious) / sum(sizes.values()),
        "mACC": sum(accuracies.values()) / len(accuracies),
        "pACC": 100 * sum(t == p for _, t, p in pixels) / len(pixels),
        **{f"IoU-{name}": value for name, value in ious.items()},
        **{f"ACC-{name}": value for name, value in accuracies.items()},
    }


@pytest.mark.parametrize("absent", [(), (2, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_metrics__equal_those_of_sets_of_pixels(seed, absent, tmp_path):
    dataset, outputs = make_set(tmp_path, seed, tuple("abcdef"), absent)
    metrics = evaluate(dataset, outputs)[1]
    assert metrics == pytest.approx(by_sets_of_pixels(dataset, outputs), rel=1e-12)
    assert [f"IoU-{name}" in metrics for name in "abcdef"] == [i not in absent for i in range(6)]


@pytest.mark.detectron2
@pytest.mark.parametrize("absent", [(), (2, 5)])
@pytest.mark.parametrize("seed", SEEDS)
def test_metrics__equal_detectron2s(seed, absent, tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import SemSegEvaluator

    dataset, outputs = make_set(tmp_path, seed, tuple("abcdef"), absent)
    name = f"made_{tmp_path}"
    DatasetCatalog.register(name, lambda: dataset.records)
    MetadataCatalog.get(name).set(stuff_classes=[*dataset.class_names], ignore_label=255)
    theirs = SemSegEvaluator(name, distributed=False)
    theirs.reset()
    logits = [torch.nn.functional.one_hot(o["sem_seg"], 6).permute(2, 0, 1) for o in outputs]
    theirs.process(dataset.records, [{"sem_seg": each} for each in logits])
    expected = {
        key: float(value)
        for key, value in theirs.evaluate()["sem_seg"].items()
        if not np.isnan(value) and "B-Iou" not in key and "Boundary" not in key
    }
    assert evaluate(dataset, outputs)[1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_iou__equals_cityscapesscripts(seed, tmp_path):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script

    chosen = {label.trainId: label for label in labels.labels if 0 <= label.trainId < 255}
    names = tuple(chosen[index].name for index in range(19))
    dataset, outputs = make_set(tmp_path, seed, names)
    ids = np.array([chosen[index].id for index in range(19)])
    args = types.SimpleNamespace(**vars(script.args))
    args.evalInstLevelScore = args.evalPixelAccuracy = False
    matrix = script.generateMatrix(args)
    for record, output in zip(dataset.records, outputs, strict=True):
        truth = np.asarray(Image.open(record["sem_seg_file_name"]))
        whole = np.zeros(256, np.uint8)  # 255 becomes 0, "unlabeled", which is ignored
        whole[:19] = ids
        files = [tmp_path / f"{kind}_{record['image_id']}.png" for kind in ("truth", "found")]
        for file, pixels in zip(files, (whole[truth], ids[output["sem_seg"]]), strict=True):
            Image.fromarray(pixels.astype(np.uint8)).save(file)
        script.evaluatePair(str(files[1]), str(files[0]), matrix, {}, {}, args)
    ious = {chosen[i].name: script.getIouScoreForLabel(chosen[i].id, matrix, args) for i in chosen}
    metrics = evaluate(dataset, outputs)[1]
    labelled = {name: value for name, value in ious.items() if f"IoU-{name}" in metrics}
    assert {ious[name] for name in ious.keys() - labelled.keys()} <= {0.0}
    for name, value in labelled.items():
        assert metrics[f"IoU-{name}"] == pytest.approx(100 * value, rel=1e-12)
    mean = script.getScoreAverage(labelled, args)
    assert metrics["mIoU"] == pytest.approx(100 * mean, rel=1e-12)


def test_files__hold_the_classes_as_masks_and_each_images_confusions(tmp_path):
    dataset, outputs = make_set(tmp_path / "data", 0, tuple("abcdef"))
    file = tmp_path / "predictions_made.json"
    evaluator, metrics = evaluate(dataset, outputs, file)
    for record, output in zip(dataset.records, outputs, strict=True):
        found = [p for p in json.loads(file.read_text()) if p["image_id"] == record["image_id"]]
        again = np.full(output["sem_seg"].shape, -1)
        for prediction in found:
            again[mask_api.decode(prediction["segmentation"]) == 1] = prediction["category_id"]
        assert (again == output["sem_seg"].numpy()).all()
    with np.load(tmp_path / evaluator.matches) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    assert found["image_ids"].tolist() == [record["image_id"] for record in dataset.records]
    for number, (record, output) in enumerate(zip(dataset.records, outputs, strict=True)):
        alone = found["sem_seg/image"] == number
        truth = np.asarray(Image.open(record["sem_seg_file_name"]))
        assert found["sem_seg/pixels"][alone].sum() == (truth != 255).sum()
        right = alone & (found["sem_seg/true"] == found["sem_seg/predicted"])
        assert found["sem_seg/pixels"][right].sum() == (truth == output["sem_seg"].numpy()).sum()
    confusion = evaluator.confusion["sem_seg"]
    for name in dataset.class_names:
        recall = confusion[name][name] / sum(confusion[name].values())
        assert metrics[f"ACC-{name}"] == pytest.approx(100 * recall)


@pytest.mark.parametrize("how", ["no file", "all ignored"])
def test_without_labels__predictions_alone(how, tmp_path):
    dataset, outputs = make_set(tmp_path, 0, tuple("abcdef"))
    for record in dataset.records:
        file = record["sem_seg_file_name"]
        if how == "no file":
            del record["sem_seg_file_name"]
        else:
            Image.fromarray(np.full_like(np.asarray(Image.open(file)), 255)).save(file)
    evaluator = SemanticEvaluator(dataset, tmp_path / "predictions_made.json")
    evaluator.process(dataset.records, outputs)
    assert evaluator.evaluate() == {} and not evaluator.matches
    found = json.loads((tmp_path / "predictions_made.json").read_text())
    assert len({prediction["image_id"] for prediction in found}) == 6


def test_an_image_without_a_labelled_pixel__has_no_part_in_intervals(tmp_path):
    dataset, outputs = make_set(tmp_path, 0, tuple("abcdef"))
    file = dataset.records[2]["sem_seg_file_name"]
    Image.fromarray(np.full_like(np.asarray(Image.open(file)), 255)).save(file)
    evaluator, _ = evaluate(dataset, outputs, tmp_path / "predictions_made.json")
    with np.load(tmp_path / evaluator.matches) as arrays:
        assert arrays["image_ids"].tolist() == ["0", "1", "3", "4", "5"]


@pytest.mark.parametrize("fault", ["size", "class"])
def test_faults__name_the_file_and_the_class(fault, tmp_path):
    dataset, outputs = make_set(tmp_path, 0, tuple("abcdef"))
    if fault == "size":
        outputs[3]["sem_seg"] = outputs[3]["sem_seg"][:-1]
        facts = [dataset.records[3]["sem_seg_file_name"], "50 x 40 px", "50 x 39 px"]
    else:
        outputs[3]["sem_seg"][0, 0] = 6
        facts = ["class 6", "6 classes"]
    with pytest.raises(InputError) as caught:
        evaluate(dataset, outputs)
    assert all(fact in str(caught.value) for fact in facts)


def _rank(rank: int, folder: Path, outputs: list[dict]) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    dataset, _ = make_set(folder / f"data{rank}", 0, tuple("abcdef"))
    evaluator = SemanticEvaluator(dataset, folder / "predictions_made.json")
    evaluator.process(dataset.records[rank::2], outputs[rank::2])
    metrics = evaluator.evaluate()
    (folder / f"{rank}.json").write_text(json.dumps([metrics, evaluator.confusion]))
    dist.destroy_process_group()


def test_two_processes__equal_one(tmp_path):
    dataset, outputs = make_set(tmp_path / "data", 0, tuple("abcdef"))
    mp.spawn(_rank, args=(tmp_path, outputs), nprocs=2)
    evaluator, metrics = evaluate(dataset, outputs, tmp_path / "predictions_one.json")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == [{"sem_seg": metrics}, evaluator.confusion] and second == [{}, {}]
    with np.load(tmp_path / "matches_made.npz") as arrays:
        assert len(arrays["image_ids"]) == 6
