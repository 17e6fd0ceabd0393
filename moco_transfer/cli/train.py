"""Fine-tuning: from a backbone file to a detector and its results.json."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..runtime.errors import InputError

if TYPE_CHECKING:
    from ..data.annotations.label_subset import LabelDraw

_AMOUNTS = ("label_subset", "label_fraction", "shots")  # one of them at most


def _label_subset(args: argparse.Namespace) -> str | LabelDraw | None:
    """Return the file of the training images, or how many labels are to be drawn."""
    from ..data.annotations.label_subset import LabelDraw

    given = [name for name in _AMOUNTS if getattr(args, name) is not None]
    if len(given) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{options} exclude each other: give one of them.")
    if args.subset_seed and given not in (["label_fraction"], ["shots"]):
        raise InputError("--subset-seed is for --label-fraction and --shots.")
    if not given or args.label_subset is not None:
        return args.label_subset
    return LabelDraw(args.label_fraction, args.shots, args.subset_seed)


def run(args: argparse.Namespace) -> int:
    """Fine-tune; returns the exit status."""
    from ..finetune.describe import describe_plan
    from ..finetune.plan import Request, join_processes, plan_finetuning
    from ..finetune.run import finetune, replay_iteration
    from ..runtime.checkpoint import CheckpointFolder
    from ..runtime.distributed import is_main_process
    from ..runtime.log import set_up_logging

    fields = Request.__dataclass_fields__
    same = {name: value for name, value in vars(args).items() if name in fields}
    same["label_subset"] = _label_subset(args)
    same["resume"] |= args.replay is not None
    request = Request(**same, datasets=args.dataset)
    device = join_processes(request)
    set_up_logging()
    plan = plan_finetuning(request, device=device)
    if args.dry_run:
        if is_main_process():
            print("\n".join(describe_plan(plan)))
        return 0
    if args.replay is not None:
        lines = replay_iteration(plan, args.replay)
        if is_main_process():
            print("\n".join(lines))
        return 0
    record = finetune(plan, on_start=set_up_logging)
    if record is None:
        return 143  # saved; 128 + SIGTERM
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
