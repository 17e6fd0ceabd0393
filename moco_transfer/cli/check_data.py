"""Check detection data sets before a run: missing, damaged and repeated images, unknown classes,
boxes out of the image or without area, sizes, ids, counts.

Prints a report for each NAME. Exits with status 2 if one of them has a problem that would stop a
run, or if they do not fit each other or the config. Writes nothing.
"""

from __future__ import annotations

import argparse

EPILOG = """examples:
  What a built-in name finds below $DETECTRON2_DATASETS:
    moco-transfer check-data voc_2007_trainval voc_2012_trainval voc_2007_test
  Your own data, in COCO's or VOC's format:
    moco-transfer check-data mine --dataset mine=coco:annotations.json:images
    moco-transfer check-data cells --dataset cells=voc:BCCD:train:RBC,WBC,Platelets
  All that a run will use, compared with its config (number of classes, masks):
    moco-transfer check-data --config-file coco_R_50_FPN_1x
    moco-transfer check-data --config-file own_R_18_FPN_small \\
        --dataset cells_train=voc:BCCD:train:RBC,WBC,Platelets \\
        --dataset cells_test=voc:BCCD:test:RBC,WBC,Platelets \\
        DATASETS.TRAIN cells_train DATASETS.TEST cells_test
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check-data``."""
    add = parser.add_argument
    text = "data sets (default: those of --dataset); with --config-file: KEY VALUE pairs"
    add("names", nargs="*", metavar="NAME", help=text)
    text = (
        "register NAME=coco:JSON:IMAGES or NAME=voc:ROOT:SPLIT:CLASSES[:first_pixel=0,year=2007]"
        " (CLASSES: comma list or file)"
    )
    add("--dataset", action="append", default=[], metavar="NAME=...", help=text)
    text = "check the data sets of this config, and whether they fit it"
    add("--config-file", metavar="FILE", help=text)
    add("--fast", action="store_true", help="read the annotations only, do not open the images")
    text = "problems to print for each data set (default 20)"
    add("--max-problems", type=int, default=20, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    """Check and report.

    Returns:
        0 if all data sets are usable, else 2.

    Raises:
        InputError: If no data set is named, a name or flag is not understood, or usable sets do not
            fit together or the config.
    """
    from ..data.annotations.catalog import check_same_classes, get_dataset, parse_dataset_flag
    from ..data.annotations.check import check_dataset, shared_images
    from ..runtime.errors import InputError

    data_request = None
    if args.config_file:
        from ..config import load_detection_config
        from ..finetune import plan

        request = plan.Request(args.config_file, args.names, args.dataset)
        cfg = load_detection_config(args.config_file, args.names)
        data_request = plan.data_request(cfg, request)
        names = list(dict.fromkeys([*data_request.train, *data_request.test]))
    else:
        own = [parse_dataset_flag(flag) for flag in args.dataset]
        names = args.names or own
    if not names:
        raise InputError(
            f"No data set is named in {args.config_file or 'the command'}: give NAMEs, such as"
            " voc_2007_test, or --dataset NAME=coco:JSON:IMAGES."
        )
    reports = [check_dataset(name, open_images=not args.fast) for name in names]
    print("\n".join(report.text(args.max_problems) for report in reports))
    for sentence in shared_images(reports):
        print(f"remark: {sentence}")
    if not all(report.is_usable for report in reports):
        return 2
    check_same_classes([get_dataset(name) for name in names])
    if data_request is not None:
        from ..finetune.datasets import Reads, read_data

        data = read_data(data_request, Reads())
        count = f"{len(data.class_names)} classes{' from the data' * data.count_from_data}"
        masks = " and masks" if data_request.masks else ""
        print(f"{args.config_file}: fits, with {count}{masks}")
    return 0
