"""Draw the nearest neighbours of a few images by an encoder's features: what it takes for alike,
without training a thing.

The queries are spread evenly over the folder; nobody chooses them. Neighbours are found among the
same images by the cosine of their features. Writes neighbours.png and neighbours.svg, by default
beside the checkpoint, where `report --format html` finds them. Where the images lie in class
folders, a neighbour of the query's class has a frame, and the share of such neighbours is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import encoder as encoder_options

EPILOG = """examples:
  A run, on the images that it was trained on or on others:
    moco-transfer neighbours out/moco/checkpoint_0012.pth --data images

  A published file, more rows and neighbours, into a folder of its own:
    moco-transfer neighbours moco_v2_800ep_pretrain.pth.tar --data imagenet/val --queries 10 --k 9 --output out/neighbours
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``neighbours``."""
    encoder_options.add_checkpoint(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="images: what DATA.ROOT of pretrain takes, a stream of tar shards excepted",
    )
    encoder_options.add_how(parser)
    parser.add_argument(
        "--queries",
        type=int,
        default=6,
        metavar="N",
        help="images asked about, one row each (default 6)",
    )
    parser.add_argument(
        "--k", type=int, default=7, metavar="N", help="neighbours of each (default 7)"
    )
    parser.add_argument(
        "--pool",
        type=int,
        default=5000,
        metavar="N",
        help="search at most so many images, drawn with a fixed seed (default 5000)",
    )
    help_features = (
        "trunk: the pooled features, which a detector gets (default); head: what MoCo compares"
    )
    parser.add_argument(
        "--features", choices=("head", "trunk"), default="trunk", help=help_features
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder for the image (default: the checkpoint's)"
    )


def run(args: argparse.Namespace) -> int:
    """Encode, search and draw.

    Returns:
        0.

    Raises:
        InputError: If the checkpoint or the images cannot be used, or a number does not fit.
    """
    from ..data.images.labelled import LabelledBatches
    from ..data.images.sources import open_indexed
    from ..pretrain.features import extract_features, trunk_of
    from ..pretrain.neighbours import draw_neighbours, draw_pool, nearest_neighbours, spread_queries
    from ..runtime.distributed import is_main_process, start_processes, stop_processes
    from ..runtime.errors import InputError
    from ..runtime.log import set_up_logging

    for option in ("queries", "k", "pool"):
        if getattr(args, option) < 1:
            raise InputError(f"--{option} must be at least 1, got {getattr(args, option)}.")
    pool = draw_pool(open_indexed(args.data), args.pool)
    found = encoder_options.open_encoder(args)
    if args.features == "head" and not found.has_head:
        raise InputError(
            f"{args.checkpoint} holds a backbone without a head. Use --features trunk."
        )
    device = start_processes(args.device)
    set_up_logging()
    try:
        network = (found.network if args.features == "head" else trunk_of(found.network)).to(device)
        batches = LabelledBatches(pool, found.view, batch_size=64, num_workers=args.workers)
        readable = extract_features(
            network, batches, encoder_options.precision_of(args, device), description="features"
        )
        queries = spread_queries(min(args.queries, len(readable.labels)), len(readable.labels))
        cosines, rows = nearest_neighbours(readable.features, queries, k=args.k)
        if is_main_process():
            places = readable.labels.cpu()
            asked, neighbours = places[queries].tolist(), places[rows.cpu()]
            png, svg = draw_neighbours(
                Path(args.output or Path(args.checkpoint).parent) / "neighbours.png",
                pool,
                asked,
                cosines.cpu(),
                neighbours,
            )
            print(
                f"Wrote {png} and {svg.name}: {len(asked)} queries, the {args.k} nearest of"
                f" {len(places)} images by {args.features} features."
            )
            _print_share(pool, asked, neighbours.tolist())
    finally:
        stop_processes()
    return 0


def _print_share(pool, asked: list[int], neighbours: list[list[int]]) -> None:
    if not pool.class_name(0):
        return
    same = [
        pool.class_name(index) == pool.class_name(query)
        for query, row in zip(asked, neighbours, strict=True)
        for index in row
    ]
    print(f"{sum(same)} of {len(same)} neighbours are of their query's class.")
