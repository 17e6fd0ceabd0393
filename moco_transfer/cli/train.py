"""Fine-tune a detector from a converted backbone, evaluate it, and write results.json.

Configs have Detectron2's keys. Images come from Detectron2's data set names below
$DETECTRON2_DATASETS (voc_2007_trainval, coco_2017_train, ...) or from your own folders with
--dataset; the number of classes and the metric are then the data's. Weights must cover the whole
backbone, and the config must suit them (BN, frozen layers, colour order, pixel statistics, batch
and learning rate), or the run does not start; everything that is wrong is reported together.
MODEL.WEIGHTS "" is random initialisation.
"""

from __future__ import annotations

import argparse

EPILOG = """examples:
  See what a run will do:
    moco-transfer train --dry-run --config-file pascal_voc_R_50_C4_24k MODEL.WEIGHTS backbone.pkl
  PASCAL VOC 07+12 as published, 8 GPUs:
    moco-transfer train --num-gpus 8 --config-file pascal_voc_R_50_C4_24k \\
        MODEL.WEIGHTS backbone.pkl OUTPUT_DIR out/voc_moco_seed0 SEED 0
  Your own images in VOC's layout (three classes), a small detector, one CPU:
    moco-transfer train --config-file own_R_18_FPN_small \\
        --dataset cells_train=voc:BCCD:train:RBC,WBC,Platelets \\
        --dataset cells_test=voc:BCCD:test:RBC,WBC,Platelets \\
        DATASETS.TRAIN cells_train DATASETS.TEST cells_test \\
        MODEL.WEIGHTS backbone.pkl OUTPUT_DIR out/cells
  Your own images in COCO's format:
    ... --dataset parts_train=coco:parts/train.json:parts/images ...
  Resume an interrupted run / evaluate a checkpoint:
    ... --resume
    ... --eval-only MODEL.WEIGHTS out/cells/checkpoint_0000250.pth OUTPUT_DIR out/cells_eval
"""

# Option -> its help; a flag, or one that takes a value.
_FLAGS = {
    "--resume": "continue the run in OUTPUT_DIR from its last checkpoint",
    "--dry-run": "print what the run would do, after every check, and write nothing",
    "--eval-only": (
        "evaluate MODEL.WEIGHTS, or with --resume the run's last checkpoint; train nothing"
    ),
    "--allow-partial": "start although MODEL.WEIGHTS does not cover the whole backbone; recorded",
    "--force": "start although config and weights do not match; recorded, marked in the table",
    "--coco-style": "evaluate a VOC test set by COCO's twelve numbers too (bbox_coco)",
}
_VALUES = {
    "--init": ("NAME", "row of the table (default: what the weights' stamp says)"),
    "--task": ("NAME", "name of the task in tables (default: the config file's)"),
    "--label-subset": (
        "FILE",
        "train on the images that FILE lists (from `benchmark --label-fraction`); recorded",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``."""
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="YAML file, or the name of one that comes with the package",
    )
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="auto|detectron2|torchvision",
        help="default: auto, Detectron2 where it is installed, else torchvision's operators",
    )
    for option, text in _FLAGS.items():
        parser.add_argument(option, action="store_true", help=text)
    for option, (metavar, text) in _VALUES.items():
        parser.add_argument(option, metavar=metavar, help=text)
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=...",
        help=(
            "your own data set: NAME=coco:JSON:IMAGES or NAME=voc:ROOT:SPLIT:CLASSES; may be"
            " repeated"
        ),
    )
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys to change, e.g. SOLVER.MAX_ITER 9000",
    )


def run(args: argparse.Namespace) -> int:
    """Fine-tune; returns the exit status."""
    from ..finetune.describe import describe_plan
    from ..finetune.plan import Request, join_processes, plan_finetuning
    from ..finetune.run import finetune
    from ..runtime.distributed import is_main_process, stop_processes
    from ..runtime.log import set_up_logging

    request = Request(
        args.config_file,
        args.overrides,
        args.dataset,
        engine=args.engine,
        task=args.task or "",
        init=args.init,
        label_subset=args.label_subset,
        resume=args.resume,
        eval_only=args.eval_only,
        allow_partial=args.allow_partial,
        force=args.force,
        coco_style=args.coco_style,
        command=getattr(args, "command", None),
    )
    device = join_processes(request)
    set_up_logging()
    try:
        plan = plan_finetuning(request, device=device)
        if args.dry_run:
            if is_main_process():
                print("\n".join(describe_plan(plan)))
            return 0
        record = finetune(plan, on_start=set_up_logging)
        if record is not None and is_main_process():
            done = f"Done: {plan.output_dir}/results.json ({record['init']})."
            print(f"{done} Next: moco-transfer report {plan.output_dir.parent}")
    finally:
        stop_processes()
    return 0 if record is not None else 143  # 128 + SIGTERM
