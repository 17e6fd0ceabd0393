"""The kNN test of an encoder's features."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 0."""
    import json
    from pathlib import Path

    from ..data.views.labelled import LabelledBatches, find_labelled
    from ..pretrain.features import extract_features, trunk_of
    from ..pretrain.knn import knn_accuracy
    from ..runtime.device import Compute, choose_precision
    from ..runtime.distributed import is_main_process, start_processes
    from ..runtime.errors import InputError
    from ..runtime.files import atomic_write_text
    from ..runtime.log import set_up_logging
    from .encoder import open_encoder, origin_of

    found = open_encoder(args)
    folders = find_labelled(args.train, args.test, channels=len(found.view.mean))
    contrastive = found.has_head and found.mechanism not in ("", "supervised")
    features = args.features or ("head" if contrastive else "trunk")
    if features == "head" and not found.has_head:
        what = "holds a backbone without a head"
        raise InputError(f"{args.checkpoint} {what}. Use --features trunk.")
    device = start_processes(args.device)
    set_up_logging()
    network = (found.network if features == "head" else trunk_of(found.network)).to(device)
    compute, sets = Compute(device, choose_precision(args.precision, device)), []
    for images, name in zip(folders, ("bank", "test"), strict=True):
        batches = LabelledBatches(images, found.view, num_workers=args.workers)
        sets.append(extract_features(network, batches, compute, description=name))
    train, test = sets
    result = knn_accuracy(train, test, k=args.k, temperature=args.temperature)
    if not is_main_process():
        return 0
    print(
        f"kNN top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % (k {args.k}, T"
        f" {args.temperature:g}, {features} features of {train.features.shape[1]} dimensions,"
        f" {len(train.labels)} in the bank, {len(test.labels)} tested)"
    )
    if args.output:
        record = {
            "schema": "moco_transfer.knn/1",
            **origin_of(args, found),
            **{"k": args.k, "temperature": args.temperature, "features": features},
            **result,
            "num_train": len(train.labels),
            "num_test": len(test.labels),
            "num_test_unreadable": test.num_unreadable,
        }
        atomic_write_text(Path(args.output) / "results.json", json.dumps(record, indent=2) + "\n")
    return 0
