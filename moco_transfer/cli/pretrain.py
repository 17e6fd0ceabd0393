"""Pre-training: from images to a checkpoint."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Pre-train; returns the exit status."""
    # torch takes seconds to import; --help need not wait for it.
    from ..config import load_pretrain_config
    from ..pretrain.describe import describe, warnings
    from ..pretrain.plan import plan_pretrain
    from ..pretrain.run import pretrain, replay_iteration
    from ..runtime.checkpoint import CheckpointFolder
    from ..runtime.distributed import is_main_process, start_processes
    from ..runtime.log import set_up_logging

    cfg = load_pretrain_config(args.config_file, args.overrides)
    start_processes(cfg.TRAIN.DEVICE)
    set_up_logging()  # to the terminal alone: the plan must not make the folder
    resume = args.resume or args.replay is not None
    plan = plan_pretrain(cfg, resume=resume, init_from=args.init_from)
    if args.replay is not None:
        lines = replay_iteration(plan, args.replay)
        if is_main_process():
            print("\n".join(lines))
        return 0
    if args.dry_run:
        if is_main_process():
            print("\n".join([*describe(plan), *(f"WARNING: {w}" for w in warnings(plan))]))
        return 0
    set_up_logging(plan.output_dir)
    if pretrain(plan) is None:
        return 143  # saved; 128 + SIGTERM
    if is_main_process():
        name = CheckpointFolder(plan.output_dir).last()
        print(f"Done: {name}. Next: moco-transfer convert {name} {plan.output_dir}/backbone.pkl")
    return 0
