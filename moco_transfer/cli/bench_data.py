"""Measure for half a minute what reading a folder costs: each stage on one core, what data workers
feed together, how many are needed.

Nothing is written. The stages are those of a data worker (read, decode, crop) and of the training
device (colours, blur, normalisation). Then the config's training step is timed on the device at
hand, without images to wait for, and the answer is a number of workers; for a GPU elsewhere, give
what it takes with --gpu-images-per-sec (a run logs it as images/s when it does not wait).
"""

from __future__ import annotations

import argparse

EPILOG = """examples:
  A folder with the settings of MoCo v2:
    moco-transfer bench-data --config-file moco_v2_R_50_200ep DATA.ROOT /data/imagenet/train
  How many workers feed a GPU elsewhere that takes 1,500 images/s:
    moco-transfer bench-data --config-file moco_v2_R_50_200ep --gpu-images-per-sec 1500 DATA.ROOT /data/imagenet/train
  Is a raw cache worth it?
    moco-transfer pack /data/imagenet/train /fast/raw --as raw && moco-transfer bench-data --config-file moco_v2_R_50_200ep DATA.ROOT /fast/raw
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench-data``."""
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a pre-training config; its DATA section is measured",
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, metavar="S", help="how long to measure (default 30)"
    )
    elsewhere = (
        "images/s of the training step on another machine; measured on this one if not given"
    )
    parser.add_argument(
        "--gpu-images-per-sec", type=float, default=0.0, metavar="N", help=elsewhere
    )
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys to change, e.g. DATA.NUM_WORKERS 16",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 0.

    Raises:
        InputError: If the config or the images cannot be used.
    """
    from ..config import load_pretrain_config
    from ..pretrain.build_bench import bench_data
    from ..runtime.errors import InputError

    if args.seconds <= 0 or args.gpu_images_per_sec < 0:
        raise InputError("--seconds must be greater than 0 and --gpu-images-per-sec at least 0.")
    cfg = load_pretrain_config(args.config_file, args.overrides)
    print(
        "\n".join(bench_data(cfg, seconds=args.seconds, gpu_images_per_sec=args.gpu_images_per_sec))
    )
    return 0
