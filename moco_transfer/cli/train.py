"""Fine-tune a detector from a converted backbone, evaluate it, and write results.json.

Configs have Detectron2's keys. Images come from Detectron2's data set names below
$DETECTRON2_DATASETS (voc_2007_trainval, coco_2017_train, ...) or from your own folders with
--dataset; the number of classes and the metric are then the data's. Weights must cover the whole
backbone, and the config must suit them (BN, frozen layers, colour order, pixel statistics, batch
and learning rate), or the run does not start; all that is wrong is said at once. MODEL.WEIGHTS ""
is random initialisation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """examples:
  PASCAL VOC 07+12 as published, 8 GPUs:
    torchrun --nproc_per_node 8 tools/train_net.py --config-file configs/detection/pascal_voc_R_50_C4_24k.yaml \\
        MODEL.WEIGHTS backbone.pkl OUTPUT_DIR out/voc_moco_seed0 SEED 0
  Your own images in VOC's layout (three classes), a small detector, one CPU; the number of classes comes from the data:
    python tools/train_net.py --config-file own_R_18_FPN_small --dataset cells_train=voc:BCCD:train:RBC,WBC,Platelets \\
        --dataset cells_test=voc:BCCD:test:RBC,WBC,Platelets DATASETS.TRAIN cells_train DATASETS.TEST cells_test \\
        MODEL.WEIGHTS backbone.pkl OUTPUT_DIR out/cells
  Your own images in COCO's format:
    ... --dataset parts_train=coco:parts/train.json:parts/images ...
  The same on Detectron2, with 8 GPUs:
    python tools/train_net.py --engine detectron2 --num-gpus 8 --config-file ...
  Go on after an interruption / evaluate a finished run:
    ... --resume          ... --eval-only MODEL.WEIGHTS out/cells/checkpoint_0000250.pth OUTPUT_DIR out/cells_eval
"""


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
        help=(
            "which engine runs (default: auto, Detectron2 where it is installed, else the embedded"
            " one on torchvision's operators)"
        ),
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in OUTPUT_DIR from its last checkpoint",
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate MODEL.WEIGHTS, or with --resume the run's last checkpoint; train nothing",
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="start although MODEL.WEIGHTS does not cover the whole backbone; recorded",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="start although config and weights do not go together; recorded, marked in the table",
    )
    parser.add_argument(
        "--init",
        metavar="NAME",
        help="row of the table this run belongs to (default: from the weights' stamp)",
    )
    parser.add_argument(
        "--task", metavar="NAME", help="name of the task in tables (default: the config file's)"
    )
    parser.add_argument(
        "--label-subset",
        metavar="FILE",
        help="train on the images that FILE lists (from `benchmark --label-fraction`); recorded",
    )
    parser.add_argument(
        "--coco-style",
        action="store_true",
        help="evaluate a VOC test set by COCO's twelve numbers too (bbox_coco)",
    )
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=...",
        help=(
            "data set of your own: NAME=coco:JSON:IMAGES or NAME=voc:ROOT:SPLIT:CLASSES; may be"
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
    from ..finetune.engines import choose_engine

    args.engine = choose_engine(args.engine)
    return _train(args)


def _train(args: argparse.Namespace) -> int:
    from ..config import is_set_by_user, load_detection_config
    from ..data.annotations.catalog import parse_dataset_flag
    from ..finetune.build import finetune
    from ..finetune.build_data import takes_class_count_from_data
    from ..runtime.distributed import is_main_process, start_processes, stop_processes
    from ..runtime.log import set_up_logging

    cfg = load_detection_config(args.config_file, args.overrides)
    own = [parse_dataset_flag(flag) for flag in args.dataset]
    said = is_set_by_user(args.config_file, args.overrides, "MODEL.ROI_HEADS.NUM_CLASSES")
    from_data = takes_class_count_from_data(cfg, own, is_set_by_user=said)
    start_processes("cpu" if cfg.MODEL.DEVICE == "cpu" else "auto")
    set_up_logging()
    folder = Path(cfg.OUTPUT_DIR)

    def started(opened: Path) -> None:
        nonlocal folder  # an evaluation may have one of its own
        folder = opened
        set_up_logging(opened)

    try:
        record = finetune(
            cfg,
            task=args.task or Path(args.config_file).stem,
            engine=args.engine,
            config_file=args.config_file,
            resume=args.resume,
            eval_only=args.eval_only,
            allow_partial=args.allow_partial,
            force=args.force,
            init=args.init,
            class_count_from_data=from_data,
            coco_style=args.coco_style,
            command=getattr(args, "command", None),
            label_subset=args.label_subset,
            on_start=started,
        )
        if is_main_process() and record is not None:
            print(
                f"Done: {folder}/results.json ({record['init']}). Next: moco-transfer report"
                f" {Path(cfg.OUTPUT_DIR).parent}"
            )
    finally:
        stop_processes()
    return 0 if record is not None else 143  # 128 + SIGTERM
