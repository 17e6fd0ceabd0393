"""Pack images into tar shards (WebDataset's layout) with an index, for faster reading.

As they are (--as original), encoded again smaller (--as jpeg), or as raw pixels (--as raw), which
need no decoding but about 1.5 times the space of a full-size ImageNet. Local shards are read in the
same order as the folder. What happened to the pixels is recorded in DST/pack.json and in the config
of every run that trains on DST. Run again after an interruption, it continues.
"""

from __future__ import annotations

import argparse

EPILOG = """examples:
  A folder of many small files on a network disk:
    moco-transfer pack /data/imagenet/train /fast/imagenet-train --workers 8
  No decoding any more (shorter side 256 px, about 260 KB an image):
    moco-transfer pack /data/imagenet/train /fast/imagenet-raw --as raw --workers 8
  Then train on it, or compare every byte with what was written:
    moco-transfer pretrain --config-file moco_v2_R_50_200ep DATA.ROOT /fast/imagenet-raw \\
        OUTPUT_DIR out/moco_v2
    moco-transfer pack --check /fast/imagenet-raw
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``pack``."""
    parser.add_argument(
        "src",
        nargs="?",
        metavar="SRC",
        help="folder, list file or data set's name, as DATA.ROOT takes it",
    )
    parser.add_argument("dst", nargs="?", metavar="DST", help="folder to write")
    parser.add_argument(
        "--as",
        dest="form",
        default="original",
        choices=["original", "jpeg", "raw"],
        help="what is kept (default original)",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=256,
        metavar="PX",
        help="shorter side of --as jpeg and raw (default 256)",
    )
    parser.add_argument(
        "--images-per-shard",
        type=int,
        default=4096,
        metavar="N",
        help="images in a shard (default 4096)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that decode (default 0: this one)",
    )
    parser.add_argument(
        "--check",
        metavar="DST",
        help="compare every byte of a pack with what was written, and do nothing else",
    )


def run(args: argparse.Namespace) -> int:
    """Pack or check; returns 0.

    Raises:
        InputError: If the images or the pack cannot be used.
    """
    from tqdm import tqdm

    from ..data.images.pack import PackSettings, check_pack, pack
    from ..data.images.sources import open_indexed
    from ..runtime.errors import InputError

    if args.check:
        print(f"{args.check}: {check_pack(args.check)} images, every byte as it was written")
        return 0
    if not args.src or not args.dst:
        raise InputError("Give SRC, the images, and DST, the folder to write; or --check DST.")
    if args.size < 8 or args.images_per_shard < 1 or args.workers < 0:
        raise InputError(
            "--size must be at least 8, --images-per-shard at least 1, --workers at least 0."
        )
    source = open_indexed(args.src)
    settings = PackSettings(args.form, args.size, args.images_per_shard)
    with tqdm(total=len(source), desc="packing", unit="images", disable=None) as bar:
        left_out = pack(source, args.dst, settings, num_workers=args.workers, on_image=bar.update)
    for reason in left_out:
        print(f"left out {reason}")
    print(open_indexed(args.dst).describe())
    return 0
