"""Fine-tune a detector from a converted backbone, evaluate it, and write results.json.

Configs have Detectron2's keys. Images come from Detectron2's data set names below
$DETECTRON2_DATASETS (voc_2007_trainval, coco_2017_train, ...) or from your own folders with
--dataset; the number of classes and the metric are then the data's. Weights must cover the whole
backbone, and the config must suit them (BN, frozen layers, colour order, pixel statistics, batch
and learning rate), or the run does not start; all faults are reported together. MODEL.WEIGHTS ""
is random initialisation.
"""

from __future__ import annotations

import argparse

from . import options

_FLAGS = {
    "--eval-only": "evaluate MODEL.WEIGHTS, or with --resume the last checkpoint; train nothing",
    "--allow-partial": "start although MODEL.WEIGHTS does not cover the whole backbone; recorded",
    "--force": "start although config and weights do not match; recorded, marked in the table",
    "--coco-style": "evaluate a VOC test set by COCO's twelve numbers too (bbox_coco)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``."""
    options.add_config(parser, example="SOLVER.MAX_ITER 9000")
    options.add_datasets(parser)
    add = parser.add_argument
    for option, text in _FLAGS.items():
        add(option, action="store_true", help=text)
    engine = "default: auto, Detectron2 where it is installed, else torchvision's operators"
    add("--engine", default="auto", metavar="auto|detectron2|torchvision", help=engine)
    options.add_precision(parser, "auto")
    add("--init", metavar="NAME", help="row of the table (default: what the weights' stamp says)")
    task = "name of the task in tables (default: the config file's)"
    add("--task", default="", metavar="NAME", help=task)
    subset = "train on the images that FILE lists (from `benchmark --label-fraction`); recorded"
    add("--label-subset", metavar="FILE", help=subset)


def run(args: argparse.Namespace) -> int:
    """Fine-tune; returns the exit status."""
    from ..finetune.describe import describe_plan
    from ..finetune.plan import Request, join_processes, plan_finetuning
    from ..finetune.run import finetune
    from ..runtime.distributed import is_main_process
    from ..runtime.log import set_up_logging

    fields = Request.__dataclass_fields__
    same = {name: value for name, value in vars(args).items() if name in fields}
    request = Request(**same, datasets=args.dataset)
    device = join_processes(request)
    set_up_logging()
    plan = plan_finetuning(request, device=device)
    if args.dry_run:
        if is_main_process():
            print("\n".join(describe_plan(plan)))
        return 0
    record = finetune(plan, on_start=set_up_logging)
    if record is None:
        return 143  # 128 + SIGTERM
    if is_main_process():
        done = f"Done: {plan.output_dir}/results.json ({record['init']})."
        print(f"{done} Next: moco-transfer report {plan.output_dir.parent}")
    return 0
