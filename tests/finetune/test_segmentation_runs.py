"""Runs of semantic segmentation on the embedded engine, as a user starts them: what they record,
what they refuse, and that each shipped config trains on real images.

Seen red under: a digest without the label images; res5's norm asked of a segmentor; the number of
classes of the detector's head compared with the data; label images taken for a data set without
objects.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco_transfer.cli.main import main
from moco_transfer.config import available, load_detection_config
from moco_transfer.data.annotations.catalog import own_names
from moco_transfer.finetune import build_model
from moco_transfer.finetune.handover import trunk_places
from moco_transfer.finetune.plan import Request, plan_finetuning
from moco_transfer.finetune.run import finetune
from moco_transfer.runtime.errors import InputError

CONFIGS = [n.split("/")[1] for n in available() if n.startswith("segmentation/")]
LEAVES = [name for name in CONFIGS if "Base-" not in name]
NAMES = "sky,sea,sand"
TINY = """DATASETS.TRAIN ('mine',) DATASETS.TEST ('mine',) DATALOADER.NUM_WORKERS 0 SEED 0
    SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.005 SOLVER.MAX_ITER 4 SOLVER.STEPS (3,)
    SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 2 SOLVER.AMP.ENABLED False MODEL.DEVICE cpu
    INPUT.CROP.SIZE [33,33] INPUT.MIN_SIZE_TRAIN (32,48) INPUT.MIN_SIZE_TEST 0
    TEST.PRECISE_BN.NUM_ITER 2""".split()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Six images of three bands, whose colours are those of their classes, and a few ignored
    pixels.
    """
    root, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for part in ("images", "labels"):
        (root / part).mkdir()
    for number in range(6):
        edges = sorted(rng.integers(8, 40, 2))
        labels = np.searchsorted(edges, np.arange(48), side="right")[:, None] + np.zeros(
            (1, 40), int
        )
        pixels = 60 + 70 * labels[..., None] + rng.integers(-20, 20, (48, 40, 3))
        labels[:3, :5] = 255
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(labels.astype(np.uint8)).save(root / "labels" / f"{number}.png")
    return root


def request(pairs: Path, folder: Path, *words: object, names: str = NAMES, **more) -> Request:
    flag = f"mine=semantic:{pairs / 'images'}:{pairs / 'labels'}:{names}"
    overrides = [*TINY, "OUTPUT_DIR", str(folder), *map(str, words)]
    return Request("voc_R_18_FCN_small", overrides, [flag], engine="torchvision", **more)


def test_train__records_what_it_did_and_evaluates_again(pairs, tmp_path):
    record = finetune(plan_finetuning(request(pairs, tmp_path / "run")))
    assert record["iterations"] == 4 and record["dataset"]["classes"] == NAMES.split(",")
    assert set(record["last_losses"]) == {"loss_sem_seg"}
    scores = record["metrics"]["sem_seg"]
    assert {"mIoU", "mACC", "pACC", "IoU-sky", "IoU-sand"} <= set(scores)
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert saved["metrics"] == record["metrics"]
    checkpoint = str(tmp_path / "run" / "checkpoint_0000004.pth")
    words = ("MODEL.WEIGHTS", checkpoint)
    again = request(pairs, tmp_path / "again", *words, eval_only=True)
    assert finetune(plan_finetuning(again))["metrics"] == record["metrics"]
    state = torch.load(checkpoint, weights_only=True)
    assert "MODEL" in state["config"] and "RANDOM_SCALE" in state["config"]
    with pytest.raises(InputError, match="label images"):  # not the config of a segmentor
        plan_finetuning(Request("demo_R_18_FPN", *again_words(again), engine="torchvision"))


def again_words(made: Request) -> tuple[list[str], list[str]]:
    own = ("INPUT.RANDOM_SCALE", "TEST.SLIDING_WINDOW")
    pairs = zip(made.overrides[::2], made.overrides[1::2], strict=True)
    return [w for pair in pairs if not pair[0].startswith(own) for w in pair], list(made.datasets)


def test_resume__other_labels_are_rejected(pairs, tmp_path):
    with own_names():
        finetune(plan_finetuning(request(pairs, tmp_path / "run")))
    moved = tmp_path / "moved"
    for file in sorted(pairs.rglob("*.png")):
        target = moved / file.relative_to(pairs)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    plan_finetuning(request(moved, tmp_path / "run", resume=True))  # the same labels elsewhere
    labels = np.asarray(Image.open(moved / "labels" / "0.png")).copy()
    labels[20, 20] = 255
    Image.fromarray(labels).save(moved / "labels" / "0.png")
    with pytest.raises(InputError, match="'mine' in DATASETS.TRAIN have changed"):
        plan_finetuning(request(moved, tmp_path / "run", resume=True))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"), "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 5"),
        (("MODEL.SEM_SEG_HEAD.NORM", ""), "MODEL.SEM_SEG_HEAD.NORM SyncBN"),
        (("MODEL.RESNETS.NORM", "FrozenBN"), "MODEL.RESNETS.NORM SyncBN"),
        (("INPUT.FORMAT", "BGR"), "INPUT.FORMAT"),
        (("DATASETS.TEST", "('voc_2007_test',)"), "'voc_2007_test' has no label images"),
    ],
)
def test_plan__what_does_not_fit_is_named(pairs, tmp_path, monkeypatch, shared_data, words, named):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    with pytest.raises(InputError, match=re.escape(named)):
        plan_finetuning(request(pairs, tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("side", "surprises"), [(33, False), (32, True)])
def test_plan__a_crop_that_the_stride_does_not_fit_is_remarked(pairs, tmp_path, side, surprises):
    made = plan_finetuning(request(pairs, tmp_path, "INPUT.CROP.SIZE", f"[{side},{side}]"))
    assert any("INPUT.CROP.SIZE" in remark for remark in made.remarks) == surprises


def test_own_keys__are_of_segmentation_alone(tmp_path):
    words = ("INPUT.RANDOM_SCALE", "(0.5,2.0)")
    with pytest.raises(InputError, match="META_ARCHITECTURE SemanticSegmentor"):
        load_detection_config("demo_R_18_FPN", words)
    assert "RANDOM_SCALE" not in load_detection_config("demo_R_18_FPN").dump()
    dumped = tmp_path / "config.yaml"
    dumped.write_text(load_detection_config("voc_R_50_FCN_d6_30k", words).dump())
    again = load_detection_config(dumped)
    assert again.INPUT.RANDOM_SCALE == (0.5, 2.0) and again.MODEL.SEM_SEG_HEAD.DILATION == 6


@pytest.mark.parametrize("name", LEAVES)
def test_config__has_a_place_for_every_tensor_of_the_trunk(name):
    cfg = load_detection_config(name)
    with torch.device("meta"):
        model = build_model(cfg)
    places = trunk_places(list(model.state_dict()))
    assert len(places) == 5 * {18: 20, 50: 53}[cfg.MODEL.RESNETS.DEPTH]
    assert model.sem_seg_head.predictor.out_channels == {"v": 21, "c": 19}[name[0]]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAVES)
def test_config__trains_three_iterations_on_real_images(name, shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    # train_aug is of VOC and SBD; MSRA's weights are on the network.
    sets = {"v": "voc_2012_sem_seg", "c": "cityscapes_fine_sem_seg"}[name[0]]
    words = f"""DATASETS.TRAIN ('{sets}_train',) DATASETS.TEST ('{sets}_val',) MODEL.DEVICE cpu
        SOLVER.REFERENCE_WORLD_SIZE 0 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 3 SOLVER.STEPS (2,)
        SOLVER.WARMUP_ITERS 0 SOLVER.BASE_LR 0.002 SEED 0 DATALOADER.NUM_WORKERS 0
        INPUT.CROP.SIZE [97,97] INPUT.RANDOM_SCALE (0.2,0.5) INPUT.MIN_SIZE_TEST 64
        TEST.PRECISE_BN.NUM_ITER 2 OUTPUT_DIR {tmp_path / name}""".split()
    arguments = ["--engine", "torchvision", "--config-file", name, "--force"]
    assert main(["train", *arguments, *words, "MODEL.WEIGHTS", ""]) == 0
    record = json.loads((tmp_path / name / "results.json").read_text())
    assert record["iterations"] == 3 and record["task"] == name
    assert 0 < record["metrics"]["sem_seg"]["mIoU"] < 100
    assert main(["report", str(tmp_path)]) == 0
