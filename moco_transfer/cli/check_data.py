"""Look detection data sets over before a run: missing files, unknown classes, boxes out of the picture, sizes, ids, counts.

Prints a report for each NAME and ends with status 2 when one of them has a problem that would stop a run. Nothing is written.
"""

from __future__ import annotations

import argparse

EPILOG = """examples:
  What a built-in name finds below $DETECTRON2_DATASETS:
    moco-transfer check-data voc_2007_trainval voc_2012_trainval voc_2007_test
  One's own data, in COCO's or VOC's format:
    moco-transfer check-data mine --dataset mine=coco:annotations.json:images
    moco-transfer check-data cells --dataset cells=voc:BCCD:train:RBC,WBC,Platelets
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check-data``."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; by default those that --dataset registers")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=...",
        help="register NAME=coco:JSON:IMAGES or NAME=voc:ROOT:SPLIT:CLASSES (comma list or file)",
    )
    parser.add_argument("--fast", action="store_true", help="read the annotations only, do not open the pictures")
    parser.add_argument("--max-problems", type=int, default=20, metavar="N", help="problems to print for each data set (default 20)")


def run(args: argparse.Namespace) -> int:
    """Check and report.

    Returns:
        0 if all data sets are usable, else 2.

    Raises:
        InputError: If no data set is named, or a name or flag is not understood.
    """
    from ..data.catalog import check_same_classes, get_dataset, parse_dataset_flag
    from ..data.check import check_dataset
    from ..runtime.errors import InputError

    registered = [parse_dataset_flag(flag) for flag in args.dataset]
    names = args.names or registered
    if not names:
        raise InputError("No data set is named: give NAMEs, such as voc_2007_test, or --dataset NAME=coco:JSON:IMAGES.")
    reports = [check_dataset(name, open_pictures=not args.fast) for name in names]
    print("\n".join(report.text(args.max_problems) for report in reports))
    if not all(report.is_usable for report in reports):
        return 2
    check_same_classes([get_dataset(name) for name in names])
    return 0
