"""Dispatches a verb; an input error becomes one sentence and exit status 2."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence

from .. import __version__
from ..runtime.errors import InputError, did_you_mean
from ..runtime.launch import launch_options, replace_by_torchrun, torchrun_command

# Verb -> what it does; its module here has the same name. Modules are imported only when their
# verb is used: `report` and `--help` do not import torch.
VERBS = {
    "pretrain": "images -> checkpoint: MoCo v1, v2, its rivals, or the supervised baseline",
    "knn": "checkpoint, labelled folders -> kNN top-1 of the features",
    "linear": "checkpoint, labelled folders -> top-1 and top-5 of the linear protocol",
    "convert": "checkpoint -> backbone.pkl for the detector, every tensor accounted for",
    "train": "backbone.pkl -> fine-tuned detector and results.json",
    "benchmark": "a matrix of runs, task x initialisation x seed, resumable -> the table",
    "predict": "a trained detector's boxes and masks, drawn on your own images",
    "report": "results.json files -> the transfer table, plots, the page",
    "sheet": "fine-tuned runs -> their detections next to the ground truth",
    "check-data": "checks a detection data set before a run",
    "pack": "images -> tar shards with an index, for faster reading",
    "bench-data": "what each stage of reading images costs, and how many data workers a GPU needs",
    "reference": "the published numbers, by name",
    "doctor": "what works on this machine, and the next step for what does not",
    "demo": "the whole pipeline on generated images, in minutes, on a CPU",
}

SEVERAL_PROCESSES = ("pretrain", "linear", "train")  # `benchmark` starts its runs itself
DIVERGED = 1
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``moco-transfer VERB …``; the entry point of the console script and of ``tools/*.py``.

    Args:
        argv: The words after the program's name; those of the process by default.

    Returns:
        Exit status: 0 done, 1 training diverged, 2 unusable input, 130 interrupted, 143 stopped by
        SIGTERM after saving. Does not return in a process that torchrun started: it ends there.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"moco-transfer {__version__}")
        return 0
    verb = words.pop(0)
    if verb not in VERBS:
        print(
            f"moco-transfer: unknown verb {verb!r}.{did_you_mean(verb, VERBS)} "
            f"Verbs: {', '.join(VERBS)}.",
            file=sys.stderr,
        )
        return 2
    module = importlib.import_module(f".{verb.replace('-', '_')}", __package__)
    parser = argparse.ArgumentParser(
        prog=f"moco-transfer {verb}",
        description=module.__doc__,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[launch_options()] if verb in SEVERAL_PROCESSES else [],
    )
    module.add_arguments(parser)
    args = parser.parse_args(words)
    args.command = shlex.join(["moco-transfer", verb, *words])  # what a run records
    try:
        if verb in SEVERAL_PROCESSES and (
            command := torchrun_command("moco_transfer", [verb, *words])
        ):
            replace_by_torchrun(command)
        status = module.run(args)
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        status = 2
    except FloatingPointError as error:  # a loss that is not finite
        print(f"{parser.prog}: {error}", file=sys.stderr)
        status = DIVERGED
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted.", file=sys.stderr)
        status = INTERRUPTED
    distributed = sys.modules.get("moco_transfer.runtime.distributed")  # imports torch
    if distributed is not None and distributed.joined_group():
        distributed.exit_process(status)
    return status


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items())
    return (
        f"moco-transfer {__version__}: does this pre-training give a better detector?\n\n"
        f"usage: moco-transfer VERB …    (moco-transfer VERB --help explains each)\n\n{verbs}\n\n"
        "The pipeline: pretrain -> checkpoint.pth -> convert -> backbone.pkl -> train -> "
        "results.json -> report -> table"
    )


if __name__ == "__main__":
    sys.exit(main())
