"""The evaluator of Cityscapes against cityscapesscripts' script, which reads a PNG of each
detection, and Detectron2's evaluator.

Seen red under: groups as objects; void not ignored; objects of other classes matched; an empty mask
kept; boxes scored as masks; a detection counted once for all images.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapes_cases import (
    detectron2_numbers,
    draw_outputs,
    let_script_run,
    script_numbers,
    write_truth,
)
from PIL import Image

from moco_transfer.data.annotations.catalog import DetectionDataset
from moco_transfer.evaluate.cityscapes_eval import CityscapesEvaluator, mask_metrics, overlaps_of
from moco_transfer.evaluate.predictions import load_predictions
from moco_transfer.report.bootstrap import Ranking

script = pytest.importorskip(
    "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling",
    reason="cityscapesscripts is not installed",
)

RECORDED = Path(__file__).parent / "fixtures" / "detectron2_cityscapes.json"


@pytest.fixture(autouse=True)
def _script_runs(monkeypatch, tmp_path):
    let_script_run(monkeypatch, tmp_path)


def _ours(dataset, outputs):
    evaluator = CityscapesEvaluator(dataset, ("bbox", "segm"))
    evaluator.process(dataset.records, outputs)
    return evaluator.evaluate()


@pytest.mark.parametrize("seed", range(40))
def test_masks__equal_the_scripts_numbers(seed, tmp_path):
    dataset = write_truth(tmp_path / "data", seed)
    outputs = draw_outputs(dataset, seed)
    files = sorted((tmp_path / "data").rglob("*"))
    theirs = script_numbers(dataset, outputs, tmp_path / "predictions")
    ours = _ours(dataset, outputs)["segm"]
    assert ours == {name: value for name, value in theirs.items() if not np.isnan(value)}
    assert sorted((tmp_path / "data").rglob("*")) == files, "nothing is written next to the data"


@pytest.fixture
def real(shared_data):
    """The validation images of the sample."""
    root = shared_data / "cityscapes"
    places = (str(root / part / "val") for part in ("leftImg8bit", "gtFine"))
    images, truth = places
    return DetectionDataset("real", "cityscapes", images, root=truth)


def test_real_images__equal_the_scripts_numbers(real, tmp_path):
    outputs = draw_outputs(real, 0)
    theirs = script_numbers(real, outputs, tmp_path / "predictions")
    metrics = _ours(real, outputs)
    assert metrics["segm"] == {k: v for k, v in theirs.items() if not np.isnan(v)}
    assert 5 < metrics["segm"]["AP"] < metrics["segm"]["AP50"] < 95
    assert {"AP", "AP50", "AP75", "APs"} <= set(metrics["bbox"])


@pytest.mark.detectron2
def test_real_images__equal_detectron2s_evaluator(real, monkeypatch):
    outputs = draw_outputs(real, 0)
    theirs = detectron2_numbers(real, outputs, monkeypatch)
    ours = _ours(real, outputs)["segm"]
    assert set(theirs) == {"AP", "AP50"} and {k: ours[k] for k in theirs} == theirs


@pytest.mark.parametrize("row", json.loads(RECORDED.read_text()), ids=lambda row: str(row["seed"]))
def test_masks__equal_what_detectron2s_evaluator_gave(row, tmp_path):
    dataset = write_truth(tmp_path / "data", row["seed"])
    ours = _ours(dataset, draw_outputs(dataset, row["seed"]))["segm"]
    assert (ours["AP"], ours["AP50"]) == pytest.approx((row["AP"], row["AP50"]), abs=1e-9)


def test_masks__detections_that_are_all_ignored_give_ap_0(tmp_path):
    """The script itself fails on them."""
    dataset = write_truth(tmp_path / "data", 0)
    outputs = draw_outputs(dataset, 0)
    for record, output in zip(dataset.records, outputs, strict=True):
        void = np.asarray(Image.open(record["instance_file"])) == 0
        output["masks"][:] = torch.from_numpy(void)
    with pytest.raises(IndexError):
        script_numbers(dataset, outputs, tmp_path / "predictions")
    assert set(_ours(dataset, outputs)["segm"].values()) == {0.0}


@pytest.mark.parametrize("seed", range(20))
def test_matches__give_the_ap_of_drawn_images(seed, tmp_path):
    """As the report's bootstrap draws them, against the script's AP of copies of the images."""
    dataset = write_truth(tmp_path / "data", seed)
    file = tmp_path / "predictions_made.json"
    evaluator = CityscapesEvaluator(dataset, ("bbox", "segm"), output_file=file)
    evaluator.process(dataset.records, draw_outputs(dataset, seed))
    metrics = evaluator.evaluate()
    with np.load(tmp_path / "matches_made.npz") as file:
        found = {name: file[name] for name in file.files}
    assert (str(found["metric"]), str(found["segm/metric"])) == ("coco", "cityscapes")
    of_masks = {k.removeprefix("segm/"): v for k, v in found.items() if k.startswith("segm/")}
    images = found["image_ids"].tolist()
    ranking = Ranking(of_masks, np.arange(len(images)), "cityscapes")
    once = np.ones((len(images), 1), np.int32)
    assert ranking.aps(once)[0] == pytest.approx(metrics["segm"]["AP"], abs=1e-9)
    overlaps = overlaps_of(load_predictions(evaluator.output_file), dataset)
    rng = np.random.default_rng(seed)
    for size in (len(images), 2):  # with few images, a class may have no object
        drawn = rng.integers(0, len(images), size)
        copies = {number: overlaps[images[image]] for number, image in enumerate(drawn)}
        expected = mask_metrics(copies, dataset).get("AP", np.nan)
        weight = np.bincount(drawn, minlength=len(images)).astype(np.int32)
        ap = ranking.aps(weight[:, None])[0]
        assert ap == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_evaluator__tide_errors_of_boxes_and_masks(tmp_path):
    pytest.importorskip("hotcoco", reason="hotcoco is not installed")
    dataset = write_truth(tmp_path / "data", 0)
    evaluator = CityscapesEvaluator(dataset, ("bbox", "segm"))
    evaluator.process(dataset.records, draw_outputs(dataset, 0))
    evaluator.evaluate()
    assert set(evaluator.tide) == {"bbox", "segm"}
    assert evaluator.tide["segm"] != evaluator.tide["bbox"], "all boxes are the same in this test"


def _scores(dataset, outputs):
    evaluator = CityscapesEvaluator(dataset, ("bbox", "segm"))
    evaluator.process(dataset.records, outputs)
    return evaluator.evaluate()["segm"], evaluator.operating_point["segm"]


@pytest.mark.parametrize("seed", range(4))
def test_evaluator__chosen_classes_have_the_numbers_that_they_have_among_all(seed, tmp_path):
    """Red under: objects of other classes counted as missed; classes in the order of the file."""
    everything = write_truth(tmp_path / "data", seed)
    outputs = draw_outputs(everything, seed)
    all_aps, all_rates = _scores(everything, outputs)
    names = [name for name in reversed(everything.class_names) if f"AP-{name}" in all_aps][:2]
    chosen, of_chosen = dataclasses.replace(everything, chosen=tuple(names)), []
    place = {everything.class_names.index(name): index for index, name in enumerate(names)}
    for output in outputs:
        kept = torch.tensor([int(index) in place for index in output["classes"]], dtype=torch.bool)
        found = {name: values[kept] for name, values in output.items()}
        classes = torch.tensor([place[int(i)] for i in found["classes"]], dtype=torch.int64)
        of_chosen.append(found | {"classes": classes})
    aps, rates = _scores(chosen, of_chosen)
    assert set(aps) == {"AP", "AP50", *(f"AP-{name}" for name in names)}
    assert all(aps[f"AP-{name}"] == all_aps[f"AP-{name}"] for name in names)
    assert aps["AP"] == pytest.approx(np.mean([aps[f"AP-{name}"] for name in names]), abs=1e-9)
    of_classes = {key: rate for key, rate in rates.items() if key.endswith(tuple(names))}
    assert len(of_classes) >= 2
    assert of_classes == {key: all_rates[key] for key in of_classes}


def test_evaluator__leaves_the_scripts_settings_alone(tmp_path):
    before = dict(vars(script.args))
    dataset = write_truth(tmp_path / "data", 0)
    _ours(dataset, draw_outputs(dataset, 0))
    assert vars(script.args) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"], "no matches.json here"


def test_evaluator__predictions_of_a_set_without_masks_are_boxes_alone(tmp_path):
    dataset = write_truth(tmp_path / "data", 0)
    evaluator = CityscapesEvaluator(dataset, ("bbox",))
    evaluator.process(dataset.records, draw_outputs(dataset, 0))
    assert set(evaluator.evaluate()) == {"bbox"}
