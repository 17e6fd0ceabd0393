"""Checks of data sets before a run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import InputError
from .json_output import plain

if TYPE_CHECKING:
    from ..data.annotations.check import DatasetReport


def run(args: argparse.Namespace) -> int:
    """Check and report; returns 0 if all data sets are usable, else 2."""
    from ..config import load_detection_config
    from ..data.annotations.catalog import align_classes, get_dataset, parse_dataset_flag
    from ..data.annotations.check import check_dataset, shared_images

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
    remarks = shared_images(reports)
    for sentence in remarks:
        print(f"remark: {sentence}")
    if args.sheet is not None:
        for report in reports:
            _draw_sheet(args.sheet, report)
    is_usable = all(report.is_usable for report in reports)
    found = [plain(report) | {"is_usable": report.is_usable} for report in reports]
    args.facts = {"is_usable": is_usable, "data_sets": found, "remarks": remarks, "config": None}
    if not is_usable:
        return 2
    align_classes([get_dataset(name) for name in names])
    if args.config_file:
        data = read_data(request, Reads())
        count = f"{len(data.class_names)} classes{' from the data' * data.count_from_data}"
        heads = {"segm": ", masks", "keypoints": f", {len(data.any_set.keypoint_names)} keypoints"}
        heads["sem_seg"] = ", label images"
        more = "".join(text for task, text in heads.items() if task in data.tasks)
        print(f"{args.config_file}: fits, with {count}{more}")
        fits = {"file": args.config_file, "classes": data.class_names, "tasks": data.tasks}
        args.facts["config"] = fits | {"remarks": data.remarks}
        for sentence in data.remarks:
            print(f"remark: {sentence}")
    return 0


def _draw_sheet(folder: Path, report: DatasetReport) -> None:
    """Draw the first annotated images, as training sees them, and histograms of all of them."""
    from ..data.annotations.catalog import get_dataset
    from ..data.histograms import draw_histograms, draw_label_histograms
    from ..evaluate.detection_sheet import draw_detection_sheet, first_images

    name = re.sub(r"[^\w.+-]", "_", report.name)
    path = folder / f"{name}.png"
    try:
        dataset = get_dataset(report.name)
        draw_detection_sheet(path, dataset, {}, image_ids=first_images(dataset))
        chart = path.with_name(f"{name}_histograms.png")
        if report.labels is not None:
            draw_label_histograms(chart, report.labels)
        else:
            draw_histograms(chart, dataset.records, dataset.class_names)
        print(f"{report.name}: drawn in {path} and {chart.name}")
    except InputError as error:
        print(f"{report.name}: no sheet ({error})")
