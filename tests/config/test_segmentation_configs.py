"""The shipped configs of semantic segmentation: what MoCo's appendix A.5 says, typed from it.

Sources: arXiv:1911.05722 Table 6 and App. A.5; what A.5 leaves open is of CVMI-Lab/SlotCon's
    transfer/segmentation/configs (momentum, no warm-up, windows at test).

Seen red under: the other set's crop or learning rate; a milestone at 80 %; warm-up; dilation 1 in
the head; no windows; a twin that keeps RGB; a wrong number in a header, of a twin too.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from moco_transfer.cli.options import add_options
from moco_transfer.config import available, load_detection_config, path
from moco_transfer.report import published_settings

LEAVES = sorted(
    n.split("/")[1] for n in available() if n.startswith("segmentation/") and "Base-" not in n
)
# training set, test set, classes, learning rate, iterations, crop, window and step at test
PROTOCOLS = {
    "voc_R_50_FCN_d6_30k": (
        *("voc_2012_sem_seg_trainaug", "voc_2012_sem_seg_val", 21),
        *(0.003, 30000, 513, (0, 0)),
    ),
    "cityscapes_R_50_FCN_d6_90k": (
        *("cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val", 19),
        *(0.01, 90000, 769, (769, 513)),
    ),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_config__protocol_of_the_paper(name):
    cfg = load_detection_config(name)
    train, test, classes, lr, iterations, crop, window = PROTOCOLS[name]
    model, head, solver, inputs = cfg.MODEL, cfg.MODEL.SEM_SEG_HEAD, cfg.SOLVER, cfg.INPUT
    assert ((train,), (test,)) == (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    assert (16, lr, iterations) == (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER)
    assert (round(0.7 * iterations), round(0.9 * iterations)) == solver.STEPS
    decays = solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS
    assert (decays, solver.GAMMA, solver.MOMENTUM) == ((1e-4, 1e-4, None), 0.1, 0.9)
    assert (solver.WARMUP_ITERS, solver.LR_SCHEDULER_NAME) == (0, "WarmupMultiStepLR")
    resnets = model.RESNETS
    assert (resnets.DEPTH, resnets.RES5_DILATION, resnets.STRIDE_IN_1X1) == (50, 2, False)
    assert (resnets.NORM, head.NORM, model.BACKBONE.FREEZE_AT) == ("SyncBN", "SyncBN", 0)
    assert (classes, 256, 2, 6) == (head.NUM_CLASSES, head.CONVS_DIM, head.NUM_CONVS, head.DILATION)
    assert (head.COMMON_STRIDE, list(head.IN_FEATURES), head.IGNORE_VALUE) == (16, ["res5"], 255)
    assert (inputs.RANDOM_SCALE, list(inputs.CROP.SIZE)) == ((0.5, 2.0), [crop, crop])
    assert (inputs.CROP.ENABLED, inputs.CROP.TYPE) == (True, "absolute")
    assert (inputs.RANDOM_FLIP, inputs.MIN_SIZE_TEST, inputs.FORMAT) == ("horizontal", 0, "RGB")
    assert window == (cfg.TEST.SLIDING_WINDOW.SIZE, cfg.TEST.SLIDING_WINDOW.STRIDE)
    assert cfg.TEST.PRECISE_BN.ENABLED and model.WEIGHTS == ""


@pytest.mark.parametrize("name", [f"{name}_msra" for name in PROTOCOLS])
def test_msra_twin__differs_in_pixels_stride_and_weights_alone(name):
    assert _changed(name) == _changed("coco_R_50_FPN_1x_msra")
    assert len(Path(path(name)).read_text(encoding="utf-8").splitlines()) <= 10


def _changed(twin: str) -> set[str]:
    """Return the lines of a dump that a twin has and its base lacks."""
    ours, theirs = (
        load_detection_config(n).dump().splitlines() for n in (twin, twin.removesuffix("_msra"))
    )
    return set(ours) - set(theirs)


@pytest.mark.parametrize("name", LEAVES)
def test_header__its_command_runs_this_config_and_its_numbers_are_the_published(name):
    text = Path(path(name)).read_text(encoding="utf-8")
    command = re.search(r"^# Command: (.*)$", text, re.MULTILINE)[1]
    words = shlex.split(command)
    words = words[words.index("train" if "train" in words else "tools/train_net.py") + 1 :]
    parser = argparse.ArgumentParser()
    add_options(parser, "train")
    args = parser.parse_args(words)
    assert args.config_file == name
    load_detection_config(args.config_file, args.overrides)
    settings = [setting for setting in published_settings() if name in setting.tasks]
    if not settings:
        assert "_R_18_" in name and "no published number exists" in text
        return
    (setting,) = settings
    inits = ["supervised"] if name.endswith("_msra") else ["random", "moco", "supervised"]
    for init in inits:
        (value,) = setting.row_for(init).values.values()
        assert f"{value}" in text, init
    assert "arXiv:1911.05722" in text and "Table 6" in text and "mean of 5" in text
    cfg = load_detection_config(name)
    assert (setting.iterations, setting.trials) == (cfg.SOLVER.MAX_ITER, 5)
    assert tuple(setting.test_set) == cfg.DATASETS.TEST
