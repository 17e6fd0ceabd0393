"""Runs a verb; an input error becomes one sentence on stderr and exit status 2."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import select
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import resources
from types import ModuleType
from typing import NoReturn

from .. import __version__
from ..runtime.errors import InputError, did_you_mean
from ..runtime.launch import launch_options, replace_by_torchrun, torchrun_command
from ..runtime.machine import explain, let_workers_end, raise_file_limit, without_lost_workers
from .json_output import json_alone
from .options import DESCRIPTIONS, SEVERAL_PROCESSES, add_options, key_value

# Verb -> what it does; its module here has the same name. Modules are imported only when their
# verb is used: `report` and `--help` do not import torch.
VERBS = {verb: about["summary"] for verb, about in DESCRIPTIONS.items() if verb != "shared"}
_ABOUT = ("", "-h", "--help", "--version")  # words in place of a verb
# FloatingPointError: a loss that is not finite. 130: a program ended by Ctrl-C.
_STATUS = {InputError: 2, FloatingPointError: 1, KeyboardInterrupt: 130}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``moco-transfer VERB …``; the entry point of the console script and of ``tools/*.py``.

    Args:
        argv: The words after the program's name; those of the process by default.

    Returns:
        Exit status: 0 done, 1 training diverged or the machine is too small, 2 unusable input, 130
        interrupted, 141 nobody reads its output any more, 143 stopped by SIGTERM or Ctrl-C after
        saving.
        Does not return in a process that torchrun started: it ends there.
    """
    if "_ARGCOMPLETE" in os.environ:  # a shell asks; docs/cli.md
        from .completion import complete

        complete()
    verb, *words = list(sys.argv[1:] if argv is None else argv) or [""]
    program = f"moco-transfer {verb}"
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack a character of a file's name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if verb in _ABOUT:
            print(f"moco-transfer {__version__}" if verb == "--version" else _overview())
            status = 0 if verb else 2
        else:
            module, args = _parse(verb, words)
            raise_file_limit()
            sys.unraisablehook = without_lost_workers
            with json_alone(args):
                status = module.run(args)
        sys.stdout.flush()
    except tuple(_STATUS) as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(2)  # process 0 mostly prints the same; torchrun then ends this one
        print(f"{program}: {str(error) or 'interrupted.'}", file=sys.stderr)
        status = next(code for kind, code in _STATUS.items() if isinstance(error, kind))
    except Exception as error:
        let_workers_end()
        if isinstance(error, BrokenPipeError) and _drop_unread_output():
            status = 141
        elif sentence := explain(error, DESCRIPTIONS.get(verb, {}).get("settings")):
            print(f"{program}: {sentence}", file=sys.stderr)
            status = 1
        else:
            raise
    finally:
        distributed = sys.modules.get("moco_transfer.runtime.distributed")  # imports torch
        if distributed is not None:
            distributed.stop_processes()
    if distributed is not None and distributed.joined_group():
        distributed.exit_process(status)
    return status


def _drop_unread_output() -> bool:
    """Return whether nobody reads stdout any more (``| head``); what is left for it is dropped."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors alone
    if is_unread := bool(poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_unread


def _parse(verb: str, words: list[str]) -> tuple[ModuleType, argparse.Namespace]:
    """Return a verb's module and its parsed words; torchrun takes over where they ask for it."""
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS)
        raise InputError(f"there is no such verb.{hint} Verbs: {', '.join(VERBS)}.")
    name = verb.replace("-", "_")
    module = importlib.import_module(f".{name}", __package__)
    examples = resources.files(__package__) / "examples"
    parser = _Parser(
        prog=f"moco-transfer {verb}",
        description=DESCRIPTIONS[verb]["description"],
        epilog=(examples / f"{name}.txt").read_text(encoding="utf-8"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[launch_options()] if verb in SEVERAL_PROCESSES else [],
    )
    add_options(parser, verb)
    args = parser.parse_intermixed_args(words)  # options may follow KEY VALUE words
    args.overrides = key_value(getattr(args, "overrides", ()))
    args.command = shlex.join(["moco-transfer", verb, *words])  # what a run records
    command = verb in SEVERAL_PROCESSES and torchrun_command("moco_transfer", [verb, *words])
    if command:
        replace_by_torchrun(command)
    return module, args


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
