"""The pre-training config's legal values; ``pretrain_schema.yaml`` holds defaults and meanings."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from ..runtime.errors import InputError
from .schema_file import flatten_config, read_schema

PRETRAIN_DEFAULTS = read_schema("pretrain_schema")

# As data/images has them, which config may not import.
LAYOUTS = ("auto", "folders", "flat", "list", "cifar10", "shards")

ONE_OF = {
    "MECHANISM": ("moco", "memory_bank", "end_to_end", "supervised"),
    "DATA.AUGMENTATION": ("v1", "v2", "cifar", "supervised"),
    "DATA.PIPELINE": ("fast", "reference"),
    "DATA.LAYOUT": LAYOUTS,
    "MODEL.ARCH": (
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x8d"),
        *("resnet50_w2x", "resnet50_w4x", "resnet18_cifar", "resnet34_cifar", "resnet50_cifar"),
    ),
    "SOLVER.SCHEDULE": ("step", "cosine", "exponential"),
    "KNN.FEATURES": ("auto", "head", "trunk"),
    "SOLVER.SCHEDULE_BY": ("epoch", "iteration"),
    "TRAIN.PRECISION": ("auto", "fp32", "bf16", "fp16"),
}

AT_LEAST = {
    **dict.fromkeys(("DATA.BATCH_SIZE_TOTAL", "DATA.SHUFFLE_BUFFER", "MOCO.DIM"), 1),
    **dict.fromkeys(("MOCO.QUEUE_SIZE", "SOLVER.REFERENCE_BATCH_SIZE", "SOLVER.EPOCHS"), 1),
    **dict.fromkeys(("SOLVER.DECAY_PERIOD", "SOLVER.ACCUMULATE", "TRAIN.LOG_PERIOD"), 1),
    **dict.fromkeys(("TRAIN.CHECKPOINT_PERIOD_EPOCHS", "KNN.PERIOD_EPOCHS", "KNN.K"), 1),
    **dict.fromkeys(("SEED", "DATA.NUM_IMAGES", "DATA.NUM_WORKERS", "DATA.TEST_RESIZE"), 0),
    **dict.fromkeys(("MOCO.BN_GROUP_SIZE", "SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS"), 0),
    **dict.fromkeys(("SOLVER.WARMUP_EPOCHS", "SOLVER.FIRST_EPOCH", "TRAIN.KEEP_CHECKPOINTS"), 0),
    **{"DATA.IMAGE_SIZE": 8, "TRAIN.CHECKPOINT_PERIOD_ITERS": 0},
}


def check_pretrain_values(cfg: CfgNode, where: str) -> None:
    """Refuse values that no run can use, before anything is read or built.

    Args:
        cfg: A merged pre-training config.
        where: The config's path, for the message.

    Raises:
        InputError: Naming the key, what is legal and what it is.
    """
    values = flatten_config(cfg)
    for key, legal in ONE_OF.items():
        if values[key] not in legal:
            raise InputError(
                f"{where}: {key} must be one of {', '.join(map(repr, legal))}, got {values[key]!r}."
            )
    for key, low in AT_LEAST.items():
        if values[key] < low:
            raise InputError(f"{where}: {key} must be at least {low}, got {values[key]}.")
    if len(cfg.DATA.CROP_SCALE) != 2:
        raise InputError(
            f"{where}: DATA.CROP_SCALE must be (low, high), got {cfg.DATA.CROP_SCALE}."
        )
    for rule, holds in _rules(cfg).items():
        if not holds:
            raise InputError(f"{where}: {rule}, got {values[rule.split(' ')[0]]!r}.")


def _rules(cfg: CfgNode) -> dict[str, bool]:
    """Return rule -> whether it holds; a rule begins with the key that it is about."""
    data, moco, solver = cfg.DATA, cfg.MOCO, cfg.SOLVER
    low, high = data.CROP_SCALE
    channels, given = data.CHANNELS, (len(data.PIXEL_MEAN), len(data.PIXEL_STD))
    return {
        "MOCO.TEMPERATURE must be > 0": moco.TEMPERATURE > 0,
        "MOCO.MOMENTUM must be in [0, 1]": 0 <= moco.MOMENTUM <= 1,
        "MOCO.BANK_MOMENTUM must be in [0, 1]": 0 <= moco.BANK_MOMENTUM <= 1,
        "MOCO.SYMMETRIC True needs MECHANISM moco": not moco.SYMMETRIC or cfg.MECHANISM == "moco",
        "KNN.TEMPERATURE must be > 0": cfg.KNN.TEMPERATURE > 0,
        "KNN.TRAIN must be given together with KNN.TEST": not cfg.KNN.TRAIN or bool(cfg.KNN.TEST),
        "SOLVER.BASE_LR must be > 0 and finite": 0 < solver.BASE_LR < float("inf"),
        "SOLVER.STEPS must grow": list(solver.STEPS) == sorted(set(solver.STEPS)),
        "SOLVER.ACCUMULATE must be 1 for MECHANISM end_to_end (negatives: the mini-batch)": (
            solver.ACCUMULATE == 1 or cfg.MECHANISM != "end_to_end"
        ),
        "DATA.TEST_RESIZE must be 0 or at least DATA.IMAGE_SIZE": (
            data.TEST_RESIZE == 0 or data.TEST_RESIZE >= data.IMAGE_SIZE
        ),
        "DATA.MAX_UNREADABLE must be in [0, 1]": 0 <= data.MAX_UNREADABLE <= 1,
        "DATA.CROP_SCALE must be 0 < low <= high <= 1": 0 < low <= high <= 1,
        "DATA.CHANNELS must be 1 to 64": 1 <= channels <= 64,
        f"DATA.PIXEL_MEAN must have DATA.CHANNELS {channels} numbers, or be () to be measured": (
            given[0] in (0, channels)
        ),
        "DATA.PIXEL_STD must have as many numbers > 0 as DATA.PIXEL_MEAN": (
            given[0] == given[1] and min(data.PIXEL_STD, default=1) > 0
        ),
        f"DATA.PIPELINE must be fast for DATA.CHANNELS {channels}": (
            channels in (1, 3) or data.PIPELINE == "fast"
        ),
    }
