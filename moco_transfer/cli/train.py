"""Fine-tuning: from a backbone file to a detector and its results.json."""

from __future__ import annotations

import argparse

_FLAGS = ("--eval-only", "--allow-partial", "--force", "--coco-style")


def run(args: argparse.Namespace) -> int:
    """Fine-tune; returns the exit status."""
    from ..finetune.describe import describe_plan
    from ..finetune.plan import Request, join_processes, plan_finetuning
    from ..finetune.run import finetune
    from ..runtime.checkpoint import CheckpointFolder
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
    if is_main_process() and not plan.data.test_sets:
        last = CheckpointFolder(plan.output_dir).last()
        print(f"Done: {last}; DATASETS.TEST is empty, so nothing was evaluated.")
        print(
            f"To do so: the same command with --eval-only MODEL.WEIGHTS {last} DATASETS.TEST NAME"
        )
    elif is_main_process():
        done = f"Done: {plan.output_dir}/results.json ({record['init']})."
        print(f"{done} Next: moco-transfer report {plan.output_dir.parent}")
    return 0
