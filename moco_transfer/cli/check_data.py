"""Checks of detection data sets before a run."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Check and report; returns 0 if all data sets are usable, else 2."""
    from ..config import load_detection_config
    from ..data.annotations.catalog import check_same_classes, get_dataset, parse_dataset_flag
    from ..data.annotations.check import check_dataset, shared_images
    from ..runtime.errors import InputError

    if args.config_file:
        from ..finetune import plan  # imports torch
        from ..finetune.datasets import Reads, read_data

        cfg = load_detection_config(args.config_file, args.names)
        words = plan.Request(args.config_file, args.names, args.dataset)
        request = plan.data_request(cfg, words)
        names = list(dict.fromkeys([*request.train, *request.test]))
    else:
        own = [parse_dataset_flag(flag) for flag in args.dataset]
        names = args.names or own
    if not names:
        where, how = args.config_file or "the command", "NAMEs, such as voc_2007_test, or --dataset"
        raise InputError(f"No data set is named in {where}: give {how}.")
    reports = [check_dataset(name, open_images=not args.fast) for name in names]
    print("\n".join(report.text() for report in reports))
    for sentence in shared_images(reports):
        print(f"remark: {sentence}")
    if not all(report.is_usable for report in reports):
        return 2
    check_same_classes([get_dataset(name) for name in names])
    if args.config_file:
        data = read_data(request, Reads())
        count = f"{len(data.class_names)} classes{' from the data' * data.count_from_data}"
        heads = {"segm": ", masks", "keypoints": f", {len(data.any_set.keypoint_names)} keypoints"}
        more = "".join(text for task, text in heads.items() if task in data.tasks)
        print(f"{args.config_file}: fits, with {count}{more}")
        for sentence in data.remarks:
            print(f"remark: {sentence}")
    return 0
