"""Dispatches a verb, turns input errors into one sentence and exit status 2, and nothing else."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Sequence

from .. import __version__
from ..runtime.errors import InputError, did_you_mean

# Verb -> (module beside this one, what it does). Modules are imported only when their verb is used:
# `report` and `--help` do not pay for torch.
VERBS = {
    "pretrain": (
        "pretrain",
        "images -> checkpoint: MoCo v1, v2, its rivals, or the supervised baseline",
    ),
    "knn": ("knn", "checkpoint, labelled folders -> kNN top-1 of the features"),
    "linear": ("linear", "checkpoint, labelled folders -> the linear protocol's top-1 and top-5"),
    "neighbours": (
        "neighbours",
        "checkpoint, images -> an image of nearest neighbours by its features",
    ),
    "convert": (
        "convert",
        "checkpoint -> backbone.pkl for the detector, every tensor accounted for",
    ),
    "train": ("train", "backbone.pkl -> fine-tuned detector and results.json"),
    "benchmark": (
        "benchmark",
        "a matrix of runs, task x initialisation x seed, resumable -> the table",
    ),
    "predict": ("predict", "a trained detector's boxes and masks, drawn on images of one's own"),
    "report": ("report", "results.json files -> the transfer table, plots, the page"),
    "sheet": ("sheet", "fine-tuned runs -> an image of their detections beside the ground truth"),
    "check-data": ("check_data", "looks a detection data set over before a run"),
    "pack": (
        "pack",
        "images -> a few large files for faster reading, as they are, smaller, or as bare pixels",
    ),
    "bench-data": (
        "bench_data",
        "what each stage of reading a folder costs, and how many data workers a GPU needs",
    ),
    "reference": ("reference", "the published numbers, by name"),
    "doctor": ("doctor", "what works on this machine, and the next step for what does not"),
    "demo": ("demo", "the whole road on generated images, in minutes, on a CPU"),
}

DIVERGED = 1
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``moco-transfer VERB …``; the console script's entry point.

    Args:
        argv: The words after the program's name; those of the process by default.

    Returns:
        Exit status: 0 done, 1 a training that diverged, 2 input that cannot be used, 130
            interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"moco-transfer {__version__}")
        return 0
    if argv[0] not in VERBS:
        print(
            f"moco-transfer: unknown verb {argv[0]!r}.{did_you_mean(argv[0], VERBS)} Verbs:"
            f" {', '.join(VERBS)}.",
            file=sys.stderr,
        )
        return 2
    return run_verb(argv[0], argv[1:], program=f"moco-transfer {argv[0]}")


def run_verb(verb: str, argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Parse a verb's words and run it; what ``tools/*.py`` call.

    Args:
        verb: A key of :data:`VERBS`.
        argv: The words after the verb; those of the process by default.
        program: Name shown in usage lines.

    Returns:
        Exit status as of :func:`main`. Does not return in a process that torchrun started: it ends
        there, with that status.
    """
    module = importlib.import_module(f".{VERBS[verb][0]}", __package__)
    parser = argparse.ArgumentParser(
        prog=program,
        description=module.__doc__,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    args.command = shlex.join(
        ["moco-transfer", verb, *argv]
    )  # what a run records, whichever script started it
    status = _status_of(module.run, args, parser.prog)
    distributed = sys.modules.get(
        "moco_transfer.runtime.distributed"
    )  # not imported for this: it imports torch
    if distributed is not None and distributed.joined_group():
        distributed.exit_process(status)
    return status


def _status_of(
    run: Callable[[argparse.Namespace], int], args: argparse.Namespace, program: str
) -> int:
    try:
        return run(args)
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:  # a loss that is not finite; raised by the trainings alone, with the iteration and the fix
        print(f"{program}: {error}", file=sys.stderr)
        return DIVERGED
    except KeyboardInterrupt:
        print(f"{program}: interrupted.", file=sys.stderr)
        return INTERRUPTED


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {what}" for verb, (_, what) in VERBS.items())
    return (
        f"moco-transfer {__version__}: does this pre-training give a better detector?\n\nusage:"
        f" moco-transfer VERB …    (moco-transfer VERB --help teaches each)\n\n{verbs}\n\nThe road:"
        " pretrain -> checkpoint.pth -> convert -> backbone.pkl -> train -> results.json -> report"
        " -> table"
    )


if __name__ == "__main__":
    sys.exit(main())
