"""Cityscapes from the command line to the table, and what is refused before anything is written.

Seen red under: cityscapesscripts looked for at the end of the training; Detectron2's own
registration of the built-in names kept; masks of polygons on Detectron2 alone.
"""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
from cityscapes_files import write_split

from moco_transfer.cli.main import main

TINY = """
    MODEL.DEVICE cpu SEED 0 DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (64,)
    INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TRAIN 96 INPUT.MAX_SIZE_TEST 96
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 MODEL.RPN.POST_NMS_TOPK_TEST 16 SOLVER.IMS_PER_BATCH 2
    SOLVER.BASE_LR 0.0025 SOLVER.MAX_ITER 3 SOLVER.STEPS (2,) SOLVER.WARMUP_ITERS 1
    SOLVER.AMP.ENABLED False TEST.PRECISE_BN.NUM_ITER 1 MODEL.FPN.OUT_CHANNELS 16
    MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16
"""


def _train(folder, engine, options=""):
    images, truth = folder / "leftImg8bit", folder / "gtFine"
    words = ["train", "--engine", engine, "--config-file", "cityscapes_R_18_FPN_small"]
    for name in ("town_train", "town_val"):
        words += ["--dataset", f"{name}=cityscapes:{images}:{truth}{options}"]
    names = ["DATASETS.TRAIN", "town_train", "DATASETS.TEST", "town_val"]
    return main([*words, *names, "OUTPUT_DIR", str(folder / "run"), *TINY.split()])


@pytest.mark.parametrize("masks", ["instanceIds", "polygons"])
@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_run__from_training_to_the_table(engine, masks, tmp_path, capsys):
    pytest.importorskip("cityscapesscripts", reason="cityscapesscripts is not installed")
    if masks == "polygons":
        pytest.importorskip("shapely", reason="shapely is not installed")
    write_split(tmp_path, count=2)
    before = sorted((tmp_path / "gtFine").rglob("*"))
    assert _train(tmp_path, engine, f":masks={masks}") == 0
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    losses = record["last_losses"]
    assert "loss_mask" in losses and all(map(math.isfinite, losses.values()))
    assert (record["engine"], record["iterations"]) == (engine, 3)
    bbox, segm = record["metrics"]["bbox"], record["metrics"]["segm"]
    assert {"AP", "AP50", "AP75"} <= set(bbox)
    # Of persons there is a group alone, and the bicycle is below 100 px.
    assert set(segm) == {"AP", "AP50", "AP-car", "AP-rider"}
    assert sorted((tmp_path / "gtFine").rglob("*")) == before
    assert main(["sheet", str(tmp_path / "run"), "--output", str(tmp_path / "sheet")]) == 0
    assert list((tmp_path / "sheet").glob("*.png"))
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "Masks" in capsys.readouterr().out


def _refused(folder, capsys):
    capsys.readouterr()
    assert _train(folder, "torchvision") == 2
    assert not (folder / "run").exists()
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    return message


def test_run__refuses_labels_alone(tmp_path, capsys):
    _, truth = write_split(tmp_path)
    for file in truth.glob("*/*"):
        if "labelIds" not in file.name:
            file.unlink()
    message = _refused(tmp_path, capsys)
    assert str(truth) in message and "_gtFine_instanceIds.png" in message


def test_run__refuses_a_folder_without_gtfine(tmp_path, capsys):
    _, truth = write_split(tmp_path)
    truth.rename(tmp_path / "elsewhere")
    assert f"{truth} does not exist" in _refused(tmp_path, capsys)


def test_run__without_cityscapesscripts_does_not_begin(tmp_path, capsys, monkeypatch):
    write_split(tmp_path)
    found = importlib.util.find_spec
    hidden = "cityscapesscripts"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == hidden else found(name, *a)
    )
    assert "moco-transfer[cityscapes]" in _refused(tmp_path, capsys)
