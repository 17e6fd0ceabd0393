"""Test an encoder's features with a weighted kNN classifier: no training, one number.

Every image of --test is classified by its k nearest neighbours (cosine) among the images of
--train, a neighbour's vote weighing exp(cosine / T). Images are seen without augmentation. Settings
are those of the official CIFAR-10 demo; the config's KNN section measures the same during
pre-training.
"""

from __future__ import annotations

import argparse

from . import encoder as encoder_options

EPILOG = """examples:
  A run on CIFAR-10, as its monitor measures it:
    moco-transfer knn out/cifar10/checkpoint_0200.pth --train cifar10/train --test cifar10/test
  An official checkpoint on ImageNet, by the pooled features before the head, on 8 GPUs:
    torchrun --nproc_per_node 8 tools/knn_eval.py moco_v2_800ep_pretrain.pth.tar \\
        --train imagenet/train --test imagenet/val --features trunk
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``knn``."""
    encoder_options.add_arguments(parser)
    parser.add_argument("--k", type=int, default=200, metavar="N", help="neighbours (default 200)")
    parser.add_argument(
        "--temperature", type=float, default=0.1, metavar="T", help="of the votes (default 0.1)"
    )
    parser.add_argument(
        "--features",
        choices=("head", "trunk"),
        help=(
            "head: the encoder's output, as in the official demo; trunk: the pooled features before"
            " it (default: head where the file has one made for contrast, otherwise trunk)"
        ),
    )
    parser.add_argument("--output", metavar="DIR", help="also write results.json there")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    import json
    from pathlib import Path

    from ..data.views.labelled import LabelledBatches, find_labelled
    from ..pretrain.features import extract_features, trunk_of
    from ..pretrain.knn import knn_accuracy
    from ..runtime.distributed import is_main_process, start_processes, stop_processes
    from ..runtime.errors import InputError
    from ..runtime.files import atomic_write_text
    from ..runtime.log import set_up_logging

    if args.k < 1 or args.temperature <= 0:
        raise InputError(
            f"--k and --temperature must be positive, got {args.k} and {args.temperature}."
        )
    folders = find_labelled(args.train, args.test)
    found = encoder_options.open_encoder(args)
    contrastive = found.has_head and found.mechanism != "supervised"
    features = args.features or ("head" if contrastive else "trunk")
    if features == "head" and not found.has_head:
        raise InputError(
            f"{args.checkpoint} holds a backbone without a head. Use --features trunk."
        )
    device = start_processes(args.device)
    set_up_logging()
    try:
        network = (found.network if features == "head" else trunk_of(found.network)).to(device)
        compute = encoder_options.compute_of(args, device)
        train, test = (
            extract_features(
                network,
                LabelledBatches(images, found.view, num_workers=args.workers),
                compute,
                description=name,
            )
            for images, name in zip(folders, ("bank", "test"), strict=True)
        )
        result = knn_accuracy(train, test, k=args.k, temperature=args.temperature)
        if not is_main_process():
            return 0
        print(
            f"kNN top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % (k {args.k}, T"
            f" {args.temperature:g}, {features} features of {train.features.shape[1]} dimensions,"
            f" {len(train.labels)} in the bank, {len(test.labels)} asked)"
        )
        if args.output:
            record = {
                "schema": "moco_transfer.knn/1",
                **encoder_options.origin_of(args, found),
                **{"k": args.k, "temperature": args.temperature, "features": features},
                **result,
                "num_train": len(train.labels),
                "num_test": len(test.labels),
                "num_test_unreadable": test.num_unreadable,
            }
            text = json.dumps(record, indent=2) + "\n"
            atomic_write_text(Path(args.output) / "results.json", text)
    finally:
        stop_processes()
    return 0
