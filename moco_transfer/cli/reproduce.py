"""The tables of the MoCo papers: what is published, what makes it, what was reached here."""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import InputError, MissingFileError, UnknownKeyError, did_you_mean

if TYPE_CHECKING:
    from ..reproduce import PaperTable, Step

_TO_RUN = "images seeds engine num_gpus msra dry_run pretrain finetune".split()  # need --output


def run(args: argparse.Namespace) -> int:
    """List, show or make tables; returns 0, or the exit status of the step that failed."""
    _check_options(args)
    if args.reference:
        return _print_reference(args.names)
    if args.docs:
        return _write_docs(args)
    from ..reproduce import ledger_json, read_records, render_list, render_table

    tables = _tables(args)
    if args.output and (args.init or args.images):
        return _make(args, tables)
    records = read_records([*args.runs, *([args.output] if args.output else [])])
    args.facts = ledger_json(tables, records)
    if not args.names and not args.only:
        print(render_list(tables), end="")
    else:
        print("\n".join(render_table(table, records) for table in tables), end="")
        for problem in records.problems:
            print(f"warning: {problem}", file=sys.stderr)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    given = [name for name in _TO_RUN if getattr(args, name)]
    if args.json and args.output and (args.init or args.images):
        raise InputError("--json prints what is known of tables, and makes none.")
    if args.init and not args.output or given and not (args.output and (args.init or args.images)):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given or ["init"])
        raise InputError(f"{options}: to make a table, give --output and --init or --images.")
    if args.output and (args.init or args.images) and not args.names:
        raise InputError("Which table? Give its name, such as table6.")
    others = [n for n in ("only", "init", "output", "json") if getattr(args, n)]
    for name, bad in (("reference", [*others, *args.runs]), ("docs", [*others, *args.names])):
        if getattr(args, name) and (bad or (args.docs and args.reference)):
            raise InputError(f"--{name} takes no other option ({', '.join(bad)}).")
    for path in args.runs:
        if not Path(path).exists():
            raise MissingFileError(f"--runs {path} does not exist; expected a folder with runs.")


def _tables(args: argparse.Namespace) -> list[PaperTable]:
    """Return the tables that the names mean, reduced to what --only names; all without a name."""
    from ..reproduce import paper_tables
    from ..reproduce.paper import choose, plain

    known = {plain(table.name): table for table in paper_tables()}
    names = _joined(args.names, known)
    for name in names:
        if plain(name) not in known:
            listed = ", ".join(table.name for table in known.values())
            hint = did_you_mean(name, [table.name for table in known.values()])
            raise UnknownKeyError(f"No table is called {name!r}.{hint} There are: {listed}.")
    tables = [known[plain(name)] for name in dict.fromkeys(names)] or list(known.values())
    if args.only:
        tables, unused = choose(tables, args.only)
        if unused:
            kinds = "task, config, row or column"
            raise UnknownKeyError(f"--only {', '.join(unused)}: no {kinds} of these tables.")
    return tables


def _joined(names: Sequence[str], known: dict[str, PaperTable]) -> list[str]:
    """Return names, where `table 6` may be two words."""
    from ..reproduce.paper import plain

    found: list[str] = []
    for name in names:
        if found and plain(found[-1]) not in known and plain(found[-1] + name) in known:
            found[-1] += name
        else:
            found.append(name)
    return found


def _print_reference(names: Sequence[str]) -> int:
    """Print the published settings that the name means, or all names."""
    from ..report import find_settings, published_settings, render_published

    titles = {setting.name: setting.title for setting in published_settings()}
    if not names:
        print("\n".join(f"{name:{max(map(len, titles))}}  {titles[name]}" for name in titles))
        return 0
    if not (found := find_settings(names)):
        hint = did_you_mean(name := " ".join(names), titles)
        known = ", ".join(titles)
        raise UnknownKeyError(f"No published setting is called {name!r}.{hint} There are: {known}.")
    print("\n".join(map(render_published, found)), end="")
    return 0


def _write_docs(args: argparse.Namespace) -> int:
    """Write the ledger of all tables between the markers of a page."""
    from ..reproduce import read_records
    from ..reproduce.render import fill_page
    from ..runtime.files import atomic_write_text

    page = Path(args.docs)
    if not page.is_file():
        raise MissingFileError(f"--docs {page} does not exist; expected a page with markers.")
    records = read_records(args.runs)
    atomic_write_text(page, fill_page(page.read_text(encoding="utf-8"), records))
    print(f"wrote {page}")
    return 0


def _make(args: argparse.Namespace, tables: list[PaperTable]) -> int:
    """Print or run the commands that make the tables."""
    from ..benchmark.matrix import parse_init
    from ..reproduce import Request, plan_steps

    inits = [parse_init(text) for text in args.init]
    request = Request(
        tables,
        Path(args.output),
        {init.name: init.weights for init in inits},
        args.images,
        args.seeds,
        args.engine,
        args.num_gpus,
        args.msra,
        tuple(args.pretrain),
        tuple(args.finetune),
    )
    steps = plan_steps(request)
    left = [step for step in steps if not step.is_done]
    if args.dry_run:
        print("\n".join(shlex.join(["moco-transfer", *step.words]) for step in left))
        return 0
    # Before the first pre-training: the benchmark that needs them comes last.
    if missing := [init for init in inits if init.weights and not Path(init.weights).is_file()]:
        files = ", ".join(f"{init.name}={init.weights}" for init in missing)
        raise MissingFileError(f"--init {files} does not exist; expected a file of weights.")
    print(_overview(steps, left), flush=True)
    return _run_steps(left)


def _overview(steps: list[Step], left: list[Step]) -> str:
    known = [step.gpu_hours for step in left if step.gpu_hours is not None]
    quick = sum(step.words[0] == "convert" for step in left)
    unknown = len(left) - quick - len(known)
    cost = f"about {sum(known):.0f} GPU hours at the published length and speed" if known else ""
    more = f"{unknown} of unknown length" if unknown else ""
    about = "; ".join(filter(None, (cost, more)))
    return f"{len(steps)} commands, {len(left)} to run ({about})"


def _run_steps(steps: Sequence[Step]) -> int:
    """Run each command as a program of its own: one may need torchrun, and its signals."""
    for number, step in enumerate(steps, start=1):
        command = shlex.join(["moco-transfer", *step.words])
        print(f"\n=== [{number}/{len(steps)}] {command}", flush=True)
        if status := run_program([sys.executable, "-m", "moco_transfer", *step.words]):
            print("Stopped there; the same command continues.", flush=True)
            return status if status > 0 else 128 - status
    return 0


def run_program(command: Sequence[str]) -> int:
    """Run a program, to which SIGTERM is passed on, and return its exit status."""
    child = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
