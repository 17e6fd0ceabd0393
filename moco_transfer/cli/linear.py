"""Test an encoder's features with the linear protocol: a linear layer on frozen, pooled features.

As in the paper: the encoder in evaluation mode, weights of the layer from N(0, 0.01), lr 30, weight
decay 0, momentum 0.9, batch 256, 100 epochs, lr times 0.1 at 60 and 80 % of them; training crops of
8 to 100 % of the image and flips, testing on the centre crop. Writes config, metrics.json,
checkpoint_*.pth and, at the end, results.json with top1 and top5 of the last epoch into --output.
"""

from __future__ import annotations

import argparse

from . import encoder as encoder_options

EPILOG = """examples:
  The published protocol on ImageNet with 8 GPUs:
    moco-transfer linear --num-gpus 8 out/moco_v2/checkpoint_0200.pth \\
        --train imagenet/train --test imagenet/val --output out/linear
  Minutes instead of days: features computed once, without augmentation:
    moco-transfer linear out/cifar10/checkpoint_0200.pth --train cifar10/train \\
        --test cifar10/test --output out/linear --cache-features
  Continue after an interruption: the same command with --resume.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``linear``."""
    encoder_options.add_arguments(parser)
    add = parser.add_argument
    add(
        "--output",
        default="output/linear",
        metavar="DIR",
        help="folder for checkpoints and results.json (default output/linear)",
    )
    add(
        "--cache-features",
        action="store_true",
        help="compute the training features once, without augmentation",
    )
    add("--resume", action="store_true", help="continue the run in --output")
    add("--epochs", type=int, default=100, metavar="N", help="passes over --train (default 100)")
    add("--lr", type=float, default=30.0, help="not scaled by the batch (default 30)")
    add(
        "--batch-size",
        type=int,
        default=256,
        metavar="N",
        help="images per iteration over all processes (default 256)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of weights, order and crops (default 0)")


def run(args: argparse.Namespace) -> int:
    """Train the layer; returns the exit status."""
    from ..data.views.labelled import find_labelled
    from ..pretrain.linear import LinearPlan, LinearProtocol, evaluate_linear
    from ..runtime.distributed import is_main_process, start_processes, stop_processes
    from ..runtime.errors import InputError
    from ..runtime.log import set_up_logging
    from ..runtime.run_folder import open_run_folder

    if min(args.epochs, args.batch_size) < 1 or args.lr <= 0 or args.seed < 0:
        raise InputError(
            "--epochs, --batch-size and --lr must be positive and --seed not negative, got"
            f" {args.epochs}, {args.batch_size}, {args.lr:g} and {args.seed}."
        )
    train, test = find_labelled(args.train, args.test)
    found = encoder_options.open_encoder(args)
    device = start_processes(args.device)
    try:
        output = open_run_folder(args.output, resume=args.resume)
        set_up_logging(output)
        protocol = LinearProtocol(
            lr=args.lr, batch_size_total=args.batch_size, epochs=args.epochs, seed=args.seed
        )
        plan = LinearPlan(
            found,
            train,
            test,
            encoder_options.origin_of(args, found),
            encoder_options.compute_of(args, device),
            output,
            protocol,
            cache_features=args.cache_features,
            num_workers=args.workers,
            resume=args.resume,
        )
        record = evaluate_linear(plan)
        if is_main_process() and record is not None:
            print(
                f"Done: {output}/results.json: linear top-1 {record['top1']:.2f} %, top-5"
                f" {record['top5']:.2f} % after {args.epochs} epochs."
            )
    finally:
        stop_processes()
    return 0 if record is not None else 143  # 128 + SIGTERM
