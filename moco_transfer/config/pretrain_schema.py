"""The pre-training config: every key with its meaning, unit, legal values and the paper's value.

Read with :func:`moco_transfer.config.load_pretrain_config`; a YAML names only what differs from
here.
"""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode

from ..runtime.errors import InputError

ARCHS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x8d",
    "resnet50_w2x",
    "resnet50_w4x",
)
ARCHS += ("resnet18_cifar", "resnet34_cifar", "resnet50_cifar")
# As data/images/sources.py has them, which config may not import.
LAYOUTS = ("auto", "folders", "flat", "list", "cifar10", "shards")
MECHANISMS = ("moco", "memory_bank", "end_to_end", "supervised")
PIPELINES = ("fast", "reference")  # as data/views/view_batch.py has them
AUGMENTATIONS = ("v1", "v2", "cifar", "supervised")
SCHEDULES = ("step", "cosine", "exponential")
PRECISIONS = ("fp32", "bf16", "fp16")

PRETRAIN_DEFAULTS: dict[str, Any] = {
    # What is trained: "moco" (arXiv 1911.05722, 2003.04297); its two rivals in Fig. 2 and Table 3,
    # "memory_bank" (keys are stored features of all images) and "end_to_end" (gradients through
    # keys, negatives from the mini-batch); or "supervised" (cross-entropy on class folders, same
    # trunk).
    "MECHANISM": "moco",
    # Folder for config.yaml, env.txt, log.txt, metrics.json, checkpoint_*.pth.
    "OUTPUT_DIR": "output/pretrain",
    # Seed >= 0 of everything drawn: weights, queue, order, crops.
    "SEED": 0,
    "DATA": {
        # What to train on, one of:
        #   a folder of images, with or without class folders below it, searched recursively; of a
        #     data set's root, train/ (train2017/, JPEGImages/) is used;
        #   a list file: one path per line, relative to the file, with or without a label;
        #   CIFAR-10: train/<class>/*.jpg, that as .tar.gz, cifar-10-batches-bin/ or
        #     cifar-10-batches-py/;
        #   tar shards, such as `moco-transfer pack` writes: a folder of them,
        #     /data/train-{000..146}.tar, or an index file (.json) as webdataset's widsindex makes
        #     it. https://… and pipe:COMMAND are read as a stream (extra "shards");
        #   a data set's name below DETECTRON2_DATASETS: coco_2017_train, voc_2007_trainval, …
        "ROOT": "",
        # "auto" goes by what ROOT is. "folders", "flat", "list", "cifar10" and "shards" insist;
        # "folders" takes every top folder as a class.
        "LAYOUT": "auto",
        # List file whose paths are relative to ROOT instead of to itself; empty for none.
        "LIST_FILE": "",
        # Number of images in tar shards, taken on trust: the shards are then read as a stream and
        # not indexed, which is the only way for shards by URL and saves hours for a hundred
        # thousand local ones. It sets the length of an epoch; labels are not looked for, and to
        # resume within an epoch each worker reads again what it had read of it (see
        # docs/images.md). 0: index local shards; 0 for everything but shards.
        "NUM_IMAGES": 0,
        # Encoded images that each data worker holds and shuffles among themselves, for a stream
        # of shards alone; 1 keeps a shard's order.
        "SHUFFLE_BUFFER": 1000,
        # Side of the square crop, px. Paper: 224.
        "IMAGE_SIZE": 224,
        # Shorter side to which evaluation (kNN, linear) resizes an image before it cuts out the
        # central IMAGE_SIZE, px;
        # 0: IMAGE_SIZE x 256 / 224, the linear protocol's.
        "TEST_RESIZE": 0,
        # Share of the image's area a crop covers, (low, high]. Paper's code: (0.2, 1.0).
        "CROP_SCALE": (0.2, 1.0),
        # "v1" (grey, jitter, flip), "v2" (jitter, grey, blur, flip), "cifar" (v2 without blur),
        # "supervised" (crop and flip alone).
        "AUGMENTATION": "v1",
        # How views are made: "fast" (decoded once, crops in uint8 in the data worker, colours as
        # batched operators on the training device) or "reference" (the plain torchvision and PIL
        # chain of the official code). Same random numbers; a view differs by rounding, see
        # docs/performance.md.
        "PIPELINE": "fast",
        # What packing did to the pixels, in words. Not to be set: a run fills it in from DATA.ROOT,
        # so that its config tells.
        "PACKED_PIXELS": "",
        # Mean and standard deviation of the pixels, RGB, 0-255. They travel with the weights.
        # Paper: ImageNet's.
        "PIXEL_MEAN": (123.675, 116.28, 103.53),
        "PIXEL_STD": (58.395, 57.12, 57.375),
        # Images per iteration over all processes. Paper: 256.
        "BATCH_SIZE_TOTAL": 256,
        # Data workers per process; 0 loads in the training process.
        "NUM_WORKERS": 4,
        # Share of unreadable images, 0-1, beyond which the run stops. Below it they are skipped,
        # counted and logged.
        "MAX_UNREADABLE": 0.01,
    },
    "MODEL": {
        # "resnet18", "resnet34", "resnet50", "resnet101" (torchvision's; stride in the 3x3
        # convolution), "resnext50_32x8d", and ResNet-50 with all widths doubled or quadrupled,
        # "resnet50_w2x" and "resnet50_w4x" (Table 1 of the paper). With "_cifar" (18, 34, 50) for
        # images of about 32 px: a 3x3 stem of stride 1 and no max-pool, as in the official
        # CIFAR-10 demo.
        "ARCH": "resnet50"
    },
    "MOCO": {
        # Dimension C of the features. Paper: 128.
        "DIM": 128,
        # Negatives K: in MoCo's queue, or drawn from the memory bank. end_to_end has
        # BATCH_SIZE_TOTAL - 1. Paper: 65536.
        "QUEUE_SIZE": 65536,
        # Share m of the old key encoder kept in each step, [0, 1]; 1 never moves it, 0 copies the
        # query encoder, both for ablations.
        # Paper: 0.999.
        "MOMENTUM": 0.999,
        # Softmax temperature T > 0. v1: 0.07, v2: 0.2.
        "TEMPERATURE": 0.07,
        # Share of an image's old feature kept in the memory bank when it is seen, [0, 1]; 1 never
        # moves it. arXiv 1805.01978: 0.5.
        "BANK_MOMENTUM": 0.5,
        # Both views as queries and as keys; the two losses are summed (the official CIFAR-10 demo).
        # Costs twice the time per iteration.
        "SYMMETRIC": False,
        # Two-layer projection head (v2) instead of one linear layer (v1).
        "MLP": False,
        # Images that share BN statistics on one device, so that BN cannot tell queries from keys
        # (Sec. 3.3). A batch on one device is split into groups of this size, and the keys' batch
        # is shuffled first. 0: no groups (leaks on one device; warned). Paper: 32 (8 GPUs x 32).
        "BN_GROUP_SIZE": 32,
        # Permute the keys' batch over all processes (and groups) before it is encoded: ShuffleBN.
        # False lets a query share BN statistics with its key, the leak of Fig. A.1; for ablations
        # alone, warned. Not used by memory_bank and supervised.
        "SHUFFLE": True,
    },
    "SOLVER": {
        # Learning rate for REFERENCE_BATCH_SIZE images; the effective one is BASE_LR *
        # BATCH_SIZE_TOTAL / REFERENCE_BATCH_SIZE.
        # Paper: 0.03 at 256.
        "BASE_LR": 0.03,
        "REFERENCE_BATCH_SIZE": 256,
        # SGD momentum and weight decay (on all parameters). Paper: 0.9, 1e-4.
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0001,
        # Length of the run in passes over the data. Paper: 200.
        "EPOCHS": 200,
        # Length in iterations instead, when > 0; EPOCHS is then not used. IG-1B: 1250000.
        "MAX_ITER": 0,
        # "step" (lr times GAMMA at each of STEPS; v1), "cosine" (half a period; v2) or
        # "exponential" (lr times GAMMA every DECAY_PERIOD; IG-1B).
        "SCHEDULE": "step",
        # What STEPS and DECAY_PERIOD count, and how often the cosine moves: "epoch" (as the
        # official code) or "iteration".
        "SCHEDULE_BY": "epoch",
        "STEPS": (120, 160),
        # Number of the first epoch in the schedule's formula. 0 in main_moco.py; 1 in the official
        # CIFAR-10 demo, whose last epoch so has the learning rate 0.
        "FIRST_EPOCH": 0,
        "GAMMA": 0.1,
        # Epochs or iterations between two steps of "exponential". IG-1B: 62500 iterations.
        "DECAY_PERIOD": 62500,
        # Linear warm-up from 0, per iteration, in epochs or in iterations (the two add up); 0 in
        # the papers.
        "WARMUP_EPOCHS": 0.0,
        "WARMUP_ITERS": 0,
        # Micro-batches per step, each with its own backward, for batches that do not fit in memory;
        # must divide the images of each process. The step, the queue's order and the memory bank's
        # draw are those of one batch; BN statistics are those of the micro-batches, and keys are
        # shuffled within each.
        "ACCUMULATE": 1,
    },
    # During the run, the features are tested on labelled images by a weighted kNN classifier
    # (labels are not trained on).
    "KNN": {
        # The images asked about: class folders, a list file with labels, or CIFAR-10 (its test
        # images are taken); empty: no monitor.
        "TEST": "",
        # The same for the bank, seen without augmentation (of CIFAR-10 the training images);
        # empty: DATA.ROOT.
        "TRAIN": "",
        # Epochs from one measurement to the next; the end of the run is always measured.
        "PERIOD_EPOCHS": 1,
        # Neighbours k, and temperature T > 0 of their votes exp(cosine / T). Official CIFAR-10
        # demo: 200, 0.1.
        "K": 200,
        "TEMPERATURE": 0.1,
        # "head" (what the encoder puts out, as in the demo), "trunk" (pooled features before the
        # head), or "auto": head, but trunk for "supervised", whose head is made for the labels.
        "FEATURES": "auto",
    },
    "TRAIN": {
        # "auto" (CUDA when there is one), "cpu", "cuda" or "mps".
        "DEVICE": "auto",
        # "fp32", "bf16" (autocast) or "fp16" (autocast with loss scaling). Logits and softmax are
        # fp32 in each.
        "PRECISION": "fp32",
        # Store activations channels-last, which is faster on CPUs and on GPUs with reduced
        # precision.
        "CHANNELS_LAST": True,
        # torch.compile the encoders. Off: minutes at the start, a C++ compiler on CPUs, 0 to 15 %
        # for ResNets in what others measured.
        "COMPILE": False,
        # A log line and a line in metrics.json every so many iterations.
        "LOG_PERIOD": 50,
        # A checkpoint every so many epochs and at the end; every so many iterations too when that
        # is > 0.
        "CHECKPOINT_PERIOD_EPOCHS": 1,
        "CHECKPOINT_PERIOD_ITERS": 0,
        # Checkpoints kept, newest first; 0 keeps all.
        "KEEP_CHECKPOINTS": 2,
        # TensorBoard event files beside metrics.json.
        "TENSORBOARD": True,
    },
}


def check_pretrain_values(cfg: CfgNode, where: str) -> None:
    """Refuse values that no run can use, before anything is read or built.

    Args:
        cfg: A merged pre-training config.
        where: The config's path, for the message.

    Raises:
        InputError: Naming the key, what is legal and what it is.
    """
    one_of = {
        "MECHANISM": MECHANISMS,
        "DATA.AUGMENTATION": AUGMENTATIONS,
        "DATA.PIPELINE": PIPELINES,
        "DATA.LAYOUT": LAYOUTS,
        "MODEL.ARCH": ARCHS,
        "SOLVER.SCHEDULE": SCHEDULES,
        "KNN.FEATURES": ("auto", "head", "trunk"),
        "SOLVER.SCHEDULE_BY": ("epoch", "iteration"),
        "TRAIN.PRECISION": PRECISIONS,
    }
    for key, legal in one_of.items():
        value = _get(cfg, key)
        if value not in legal:
            raise InputError(
                f"{where}: {key} must be one of {', '.join(map(repr, legal))}, got {value!r}."
            )
    at_least = {
        "DATA.IMAGE_SIZE": 8,
        "DATA.BATCH_SIZE_TOTAL": 1,
        "DATA.NUM_WORKERS": 0,
        "MOCO.DIM": 1,
        "MOCO.QUEUE_SIZE": 1,
    }
    at_least |= {
        "MOCO.BN_GROUP_SIZE": 0,
        "SOLVER.REFERENCE_BATCH_SIZE": 1,
        "SOLVER.EPOCHS": 1,
        "TRAIN.LOG_PERIOD": 1,
    }
    at_least |= {
        "SOLVER.MAX_ITER": 0,
        "SOLVER.DECAY_PERIOD": 1,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.ACCUMULATE": 1,
    }
    at_least |= {
        "TRAIN.CHECKPOINT_PERIOD_EPOCHS": 1,
        "TRAIN.CHECKPOINT_PERIOD_ITERS": 0,
        "TRAIN.KEEP_CHECKPOINTS": 0,
        "SEED": 0,
    }
    at_least |= {"DATA.NUM_IMAGES": 0, "DATA.SHUFFLE_BUFFER": 1}
    at_least |= {"DATA.TEST_RESIZE": 0, "KNN.PERIOD_EPOCHS": 1, "KNN.K": 1, "SOLVER.FIRST_EPOCH": 0}
    for key, low in at_least.items():
        if _get(cfg, key) < low:
            raise InputError(f"{where}: {key} must be at least {low}, got {_get(cfg, key)}.")
    _check_ranges(cfg, where)


def _check_ranges(cfg: CfgNode, where: str) -> None:
    low, high = cfg.DATA.CROP_SCALE
    checks = {
        "MOCO.TEMPERATURE must be > 0": cfg.MOCO.TEMPERATURE > 0,
        "MOCO.MOMENTUM must be in [0, 1]": 0 <= cfg.MOCO.MOMENTUM <= 1,
        "KNN.TEMPERATURE must be > 0": cfg.KNN.TEMPERATURE > 0,
        "KNN.TRAIN must be given together with KNN.TEST": not cfg.KNN.TRAIN or bool(cfg.KNN.TEST),
        "DATA.TEST_RESIZE must be 0 or at least DATA.IMAGE_SIZE": (
            cfg.DATA.TEST_RESIZE == 0 or cfg.DATA.TEST_RESIZE >= cfg.DATA.IMAGE_SIZE
        ),
        "MOCO.BANK_MOMENTUM must be in [0, 1]": 0 <= cfg.MOCO.BANK_MOMENTUM <= 1,
        "SOLVER.BASE_LR must be > 0": cfg.SOLVER.BASE_LR > 0,
        "SOLVER.WARMUP_EPOCHS must be >= 0": cfg.SOLVER.WARMUP_EPOCHS >= 0,
        "DATA.MAX_UNREADABLE must be in [0, 1]": 0 <= cfg.DATA.MAX_UNREADABLE <= 1,
        "DATA.CROP_SCALE must be 0 < low <= high <= 1": 0 < low <= high <= 1,
        "DATA.PIXEL_STD must have three numbers > 0": (
            len(cfg.DATA.PIXEL_STD) == 3 and min(cfg.DATA.PIXEL_STD) > 0
        ),
        "DATA.PIXEL_MEAN must have three numbers": len(cfg.DATA.PIXEL_MEAN) == 3,
        "SOLVER.STEPS must grow": list(cfg.SOLVER.STEPS) == sorted(set(cfg.SOLVER.STEPS)),
    }
    if cfg.MECHANISM == "end_to_end" and cfg.SOLVER.ACCUMULATE > 1:
        raise InputError(
            f"{where}: SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE} would change what MECHANISM"
            " end_to_end learns: its negatives are the mini-batch. Use ACCUMULATE 1 and a batch"
            " that fits."
        )
    if cfg.MOCO.SYMMETRIC and cfg.MECHANISM != "moco":
        raise InputError(
            f"{where}: MOCO.SYMMETRIC True needs MECHANISM moco, got {cfg.MECHANISM!r}."
        )
    for rule, holds in checks.items():
        if not holds:
            key = rule.split(" ")[0]
            raise InputError(f"{where}: {rule}, got {_get(cfg, key)}.")


def _get(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node
