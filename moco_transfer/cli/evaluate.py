"""Detections of another program: from COCO results to a row of the table."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Evaluate a file of detections; returns 0."""
    from ..data.annotations.catalog import parse_dataset_flag
    from ..finetune.from_predictions import PredictionsRequest, evaluate_predictions
    from ..runtime.log import set_up_logging

    set_up_logging()
    fields = PredictionsRequest.__dataclass_fields__
    same = {name: value for name, value in vars(args).items() if name in fields}
    if "=" in args.dataset:
        same["dataset"] = parse_dataset_flag(args.dataset)
    record = evaluate_predictions(PredictionsRequest(**same))
    print(f"Done: {args.output}/results.json ({record['init']}, another program's detections).")
    print(f"Next to our rows: moco-transfer report {args.output} RUNS")
    return 0
