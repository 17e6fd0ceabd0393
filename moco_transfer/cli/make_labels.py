"""Label images of semantic segmentation, made from other files."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Make them; returns 0, or 2 if some could not be made."""
    from ..data.annotations.catalog import datasets_root
    from ..data.annotations.semantic.make import VOC_AUG, make_train_ids, make_voc_aug
    from ..runtime.errors import InputError

    if (args.what == VOC_AUG) != (args.sbd is not None):
        raise InputError(f"--sbd is needed for {VOC_AUG}, and for nothing else.")
    if args.what == VOC_AUG:
        made = make_voc_aug(args.root or datasets_root() / "VOC2012", args.sbd)
    else:
        made = make_train_ids(args.root or datasets_root() / "cityscapes" / "gtFine")
    for note in made.notes:
        print(note)
    print(f"label images: {made.written} written, {made.kept} were there")
    for problem in made.problems[:20]:
        print(f"PROBLEM: {problem}")
    if made.problems:
        print(f"not made: {len(made.problems)}")
    return 2 if made.problems else 0
