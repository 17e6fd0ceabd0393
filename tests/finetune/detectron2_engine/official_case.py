"""Twenty iterations of MoCo's published VOC C4 detector at a size for a CPU; the official
train_net.py and ours run the same case.

Digits depend on what adds the numbers up: on torch, and on the processor, for whose instructions
    its libraries have several kernels. So a
recorded run says what it was made with (:func:`made_with`), and :func:`pin_kernels` keeps to
instructions that every x86 processor of the last ten years has.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
from pathlib import Path

NUM_ITERATIONS = 20
LOSSES = ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc")

# One GPU's share of the published batch with its learning rate; small images, few regions, no
# worker.
OVERRIDES = """
    MODEL.DEVICE cpu SEED 7 DATALOADER.NUM_WORKERS 0 DATASETS.TRAIN ('voc_2007_trainval',)
    INPUT.MIN_SIZE_TRAIN (64,80,96) INPUT.MIN_SIZE_TEST 64 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
    SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.0025 SOLVER.REFERENCE_WORLD_SIZE 0 SOLVER.MAX_ITER 20
    SOLVER.STEPS (15,) SOLVER.WARMUP_ITERS 5 TEST.PRECISE_BN.NUM_ITER 2
    MODEL.RPN.POST_NMS_TOPK_TEST 8
"""

_KERNELS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
}


def pin_kernels() -> None:
    """Choose the same kernels on every processor that has them, in one thread; to be called before
    torch is imported.
    """
    os.environ.update(_KERNELS)


def made_with() -> dict[str, str]:
    """Return what the digits of a run in this process depend on."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    vendor = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")),
        platform.machine(),
    )
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_vendor": vendor,
    }


def write_backbone(folder: Path) -> Path:
    """Write a ResNet-50 in the official converter's layout, with random weights that are a function
    of nothing but torch's generator.
    """
    import torch
    from torchvision.models import resnet50

    from moco_transfer.convert import convert_checkpoint

    torch.manual_seed(0)
    checkpoint, backbone = folder / "resnet50.pth", folder / "backbone.pkl"
    torch.save(resnet50().state_dict(), checkpoint)
    convert_checkpoint(checkpoint, backbone)
    content = pickle.loads(backbone.read_bytes())
    # Two of the official converter's three keys; a stamp it does not have, and the linter would
    # hold this file to be labelled images'.
    backbone.write_bytes(
        pickle.dumps({"model": content["model"], "__author__": "MOCO", "matching_heuristics": True})
    )
    return backbone


def our_losses(folder: Path, backbone: Path) -> dict[str, list[float]]:
    """Run the case on our Detectron2 engine and return each loss of each iteration."""
    from moco_transfer.finetune import trainer
    from moco_transfer.finetune.plan import Request, plan_finetuning
    from moco_transfer.finetune.run import finetune

    words = [
        *OVERRIDES.split(),
        "MODEL.WEIGHTS",
        str(backbone),
        "OUTPUT_DIR",
        str(folder / "ours"),
        "DATASETS.TEST",
        "('voc_2007_test',)",
    ]
    trainer.LOG_PERIOD = 1
    finetune(plan_finetuning(Request("pascal_voc_R_50_C4_24k", words, engine="detectron2")))
    rows = [
        json.loads(line) for line in (folder / "ours" / "metrics.json").read_text().splitlines()
    ]
    return {name: [row[name] for row in rows if name in row] for name in (*LOSSES, "lr")}
