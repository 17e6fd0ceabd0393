"""Images packed into tar shards with an index."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Pack or check; returns 0."""
    from tqdm import tqdm

    from ..data.images.pack import PackSettings, check_pack, pack
    from ..data.images.sources import open_indexed
    from ..runtime.errors import InputError
    from ..runtime.progress import progress

    if args.check:
        print(f"{args.check}: {check_pack(args.check)} images, every byte as it was written")
        return 0
    if not args.src or not args.dst or args.size < 8:
        raise InputError("Give SRC, DST and a --size of at least 8; or --check DST alone.")
    source = open_indexed(args.src)
    settings = PackSettings(args.form, args.size)
    with progress(None, "packing", total=len(source), unit="images") as bar:
        for reason in pack(
            source, args.dst, settings, num_workers=args.workers, on_image=bar.update
        ):
            tqdm.write(f"left out {reason}")
    print(open_indexed(args.dst).describe())
    return 0
