"""The linear protocol on an encoder's features."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Train the layer; returns the exit status."""
    from ..data.views.labelled import find_labelled
    from ..pretrain.linear import LinearPlan, LinearProtocol, evaluate_linear
    from ..runtime.device import Compute, choose_precision
    from ..runtime.distributed import is_main_process, start_processes
    from ..runtime.log import set_up_logging
    from ..runtime.run_folder import open_run_folder
    from .encoder import open_encoder, origin_of

    found = open_encoder(args)
    train, test = find_labelled(args.train, args.test, channels=len(found.view.mean))
    device = start_processes(args.device)
    output = open_run_folder(args.output, resume=args.resume)
    set_up_logging(output)
    settings = {"lr": args.lr, "epochs": args.epochs, "seed": args.seed}
    protocol = LinearProtocol(batch_size_total=args.batch_size, **settings)
    plan = LinearPlan(
        found,
        train,
        test,
        origin_of(args, found),
        Compute(device, choose_precision(args.precision, device)),
        output,
        protocol,
        cache_features=args.cache_features,
        num_workers=args.workers,
        resume=args.resume,
    )
    record = evaluate_linear(plan)
    if record is None:
        return 143  # saved; 128 + SIGTERM
    if is_main_process():
        found_top = f"linear top-1 {record['top1']:.2f} %, top-5 {record['top5']:.2f} %"
        print(f"Done: {output}/results.json: {found_top} after {args.epochs} epochs.")
    return 0
