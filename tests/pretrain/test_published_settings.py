"""The shipped pre-training configs against the papers, value by value, and the learning rate that
comes out of them.

The literals are the papers' and the official code's, written down by hand: arXiv:1911.05722 Sec.
3.3 and 4 (v1, IG-1B, Fig. 3, Table 1), arXiv:2003.04297 (v2), main_moco.py at
facebookresearch/moco@7397dfe (order and strength of the augmentations), and the official CIFAR-10
demo (branch colab-notebook @f736491). The supervised recipe is the usual one of 90 epochs; no paper
gives it.

Seen red under: v2's temperature in v1; jitter before grey in v1; FIRST_EPOCH 0 in the demo's; a
    decay period of 62,000;
SHUFFLE switched off by default; the watch's patience without an end.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from moco_transfer.config import available, load_pretrain_config
from moco_transfer.data.views.augmentation import RECIPES
from moco_transfer.pretrain.plan import PATIENCE, PretrainPlan, learning_rate

IMAGENET = 1_281_167
IMAGENET_PIXELS = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

V1 = {
    "MECHANISM": "moco",
    "MODEL.ARCH": "resnet50",
    "DATA.IMAGE_SIZE": 224,
    "DATA.CROP_SCALE": (0.2, 1.0),
    "DATA.AUGMENTATION": "v1",
    "DATA.BATCH_SIZE_TOTAL": 256,
    "DATA.PIXEL_MEAN": IMAGENET_PIXELS[0],
    "DATA.PIXEL_STD": IMAGENET_PIXELS[1],
    "MOCO.DIM": 128,
    "MOCO.QUEUE_SIZE": 65536,
    "MOCO.MOMENTUM": 0.999,
    "MOCO.TEMPERATURE": 0.07,
    "MOCO.MLP": False,
    "MOCO.SYMMETRIC": False,
    "MOCO.SHUFFLE": True,
    "MOCO.BN_GROUP_SIZE": 32,  # 8 GPUs x 32
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.SCHEDULE": "step",
    "SOLVER.SCHEDULE_BY": "epoch",
    "SOLVER.STEPS": (120, 160),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.EPOCHS": 200,
    "SOLVER.MAX_ITER": 0,
    "SOLVER.FIRST_EPOCH": 0,
    "SOLVER.WARMUP_EPOCHS": 0.0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.ACCUMULATE": 1,
    "lr": 0.03,
}
V2 = V1 | {
    "DATA.AUGMENTATION": "v2",
    "MOCO.TEMPERATURE": 0.2,
    "MOCO.MLP": True,
    "SOLVER.SCHEDULE": "cosine",
}
CIFAR = V1 | {
    "MODEL.ARCH": "resnet18_cifar",
    "DATA.IMAGE_SIZE": 32,
    "DATA.TEST_RESIZE": 32,
    "DATA.CROP_SCALE": (0.08, 1.0),
    "DATA.AUGMENTATION": "cifar",
    "DATA.BATCH_SIZE_TOTAL": 512,
    "DATA.PIXEL_MEAN": (0.4914 * 255, 0.4822 * 255, 0.4465 * 255),
    "DATA.PIXEL_STD": (0.2023 * 255, 0.1994 * 255, 0.2010 * 255),
    "MOCO.QUEUE_SIZE": 4096,
    "MOCO.MOMENTUM": 0.99,
    "MOCO.TEMPERATURE": 0.1,
    "MOCO.BN_GROUP_SIZE": 64,  # 512 in the demo's 8 splits
    "SOLVER.WEIGHT_DECAY": 0.0005,
    "SOLVER.SCHEDULE": "cosine",
    "SOLVER.FIRST_EPOCH": 1,
    "KNN.K": 200,
    "KNN.TEMPERATURE": 0.1,
    "KNN.FEATURES": "head",
    "lr": 0.06,
}
SETTINGS = {
    "moco_v1_R_50_200ep": V1,
    "moco_v1_RX_50_200ep": V1 | {"MODEL.ARCH": "resnext50_32x8d"},
    "moco_v1_R_50_w2x_200ep": V1 | {"MODEL.ARCH": "resnet50_w2x"},
    "moco_v1_R_50_w4x_200ep": V1 | {"MODEL.ARCH": "resnet50_w4x"},
    "moco_v1_R_50_ig1b": (
        V1
        | {
            "DATA.BATCH_SIZE_TOTAL": 1024,
            "SOLVER.SCHEDULE": "exponential",
            "SOLVER.SCHEDULE_BY": "iteration",
            "SOLVER.GAMMA": 0.9,
            "SOLVER.DECAY_PERIOD": 62_500,
            "SOLVER.MAX_ITER": 1_250_000,
            "lr": 0.12,
        }
    ),
    "moco_v2_R_50_200ep": V2,
    "moco_v2_R_50_800ep": V2 | {"SOLVER.EPOCHS": 800},
    "memory_bank_R_50_200ep": V1 | {"MECHANISM": "memory_bank", "MOCO.BANK_MOMENTUM": 0.5},
    "end_to_end_R_50_200ep": (
        V1 | {"MECHANISM": "end_to_end", "DATA.BATCH_SIZE_TOTAL": 1024, "lr": 0.12}
    ),  # with the linear scaling rule
    "supervised_R_50_90ep": (
        V1
        | {
            "MECHANISM": "supervised",
            "DATA.AUGMENTATION": "supervised",
            "DATA.CROP_SCALE": (0.08, 1.0),
            "SOLVER.STEPS": (30, 60),
            "SOLVER.EPOCHS": 90,
            "lr": 0.1,
        }
    ),
    **{f"cifar10_asym_{epochs}ep": CIFAR | {"SOLVER.EPOCHS": epochs} for epochs in (200, 400, 800)},
    **{
        f"cifar10_sym_{epochs}ep": CIFAR | {"SOLVER.EPOCHS": epochs, "MOCO.SYMMETRIC": True}
        for epochs in (200, 400, 800)
    },
}
OURS = {
    "demo_moco",
    "demo_supervised",
    "moco_v2_R_18_96px",
    "supervised_R_18_96px",
}  # no paper's: small settings of this project

# (strengths of brightness, contrast, saturation, hue), how often jitter, grey and blur, and whether
# grey comes before the jitter
AUGMENTATIONS = {
    "v1": ((0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0, True),
    "v2": ((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, False),
    "cifar": ((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.0, False),
    "supervised": ((0.0, 0.0, 0.0, 0.0), 0.0, 0.0, 0.0, False),
}


def value_of(cfg, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def lr_of(cfg) -> float:
    return learning_rate(cfg, 100, 1000).lr


def test_every_shipped_config_is_in_the_table():
    names = {file.stem for file in available().values() if file.parent.name == "pretrain"}
    assert names == SETTINGS.keys() | OURS


@pytest.mark.parametrize("name", SETTINGS)
def test_config__has_the_published_values(name):
    cfg = load_pretrain_config(name)
    for key, expected in SETTINGS[name].items():
        value = lr_of(cfg) if key == "lr" else value_of(cfg, key)
        if isinstance(expected, (float, tuple)):
            assert value == pytest.approx(expected, rel=1e-9), key
        else:
            assert value == expected, key


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation__has_the_published_strengths(name):
    recipe = RECIPES[name]
    found = (recipe.jitter, recipe.jitter_p, recipe.grey_p, recipe.blur_p)
    assert found == AUGMENTATIONS[name][:4]
    assert recipe.grey_first == AUGMENTATIONS[name][4]


def learning_rates(name: str, images: int):
    cfg = load_pretrain_config(name)
    per_epoch = images // cfg.DATA.BATCH_SIZE_TOTAL
    return learning_rate(cfg, per_epoch, per_epoch * cfg.SOLVER.EPOCHS), per_epoch


def test_learning_rate__comes_out_as_published():
    """What the official formulas give, by the arithmetic shown."""
    v1, per_epoch = learning_rates("moco_v1_R_50_200ep", IMAGENET)
    assert per_epoch == 5004
    at = {0: 0.03, 119: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 199: 0.0003}
    assert [v1(epoch * per_epoch) for epoch in at] == pytest.approx(list(at.values()))
    v2, per_epoch = learning_rates("moco_v2_R_50_200ep", IMAGENET)
    for epoch in (0, 1, 100, 199):  # per epoch, not per iteration
        expected = 0.03 * 0.5 * (1 + math.cos(math.pi * epoch / 200))
        assert [v2(epoch * per_epoch), v2((epoch + 1) * per_epoch - 1)] == pytest.approx(
            [expected] * 2
        )
    cifar, per_epoch = learning_rates("cifar10_asym_200ep", 50_000)
    assert per_epoch == 97
    # Logged in the demo's run: epoch 1 of 200 has 0.059996, epoch 200 has 0.
    assert cifar(0) == pytest.approx(0.059996, abs=5e-7) and cifar(199 * 97) == pytest.approx(
        0, abs=1e-9
    )
    ig, _ = learning_rates("moco_v1_R_50_ig1b", 940_000_000)
    assert [ig(0), ig(62_499), ig(62_500), ig(1_249_999)] == pytest.approx(
        [0.12, 0.12, 0.108, 0.12 * 0.9**19]
    )


@pytest.mark.parametrize(
    ("name", "images", "expected"),
    [
        ("moco_v1_R_50_ig1b", 940_000_000, 5000),  # an epoch is 917,968 iterations, most of the run
        ("moco_v1_R_50_200ep", IMAGENET, 5000),
        ("cifar10_asym_200ep", 50_000, 97),  # an epoch; the queue is full after 8
        (
            "moco_v2_R_50_200ep",
            2560,
            256,
        ),  # the queue takes 256 iterations to fill, an epoch has 10
    ],
)
def test_watch__is_patient_for_an_epoch_a_filled_queue_or_5000_iterations(name, images, expected):
    cfg = load_pretrain_config(name)
    batch = cfg.DATA.BATCH_SIZE_TOTAL
    plan = SimpleNamespace(
        queue_size=cfg.MOCO.QUEUE_SIZE,
        batch_size_total=batch,
        mechanism=cfg.MECHANISM,
        iterations_per_epoch=images // batch,
    )
    assert PATIENCE == 5000 and PretrainPlan.patience_iterations.fget(plan) == expected
