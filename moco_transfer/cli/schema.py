"""JSON schemas of the files that people and programs write and read."""

from __future__ import annotations

import argparse
import json

from ..runtime.files import atomic_write_text


def run(args: argparse.Namespace) -> int:
    """Print or write a schema; returns 0."""
    from ..config.json_schema import config_schema
    from ..report.results_schema import results_schema

    schema = results_schema() if args.what == "results" else config_schema(args.what)
    text = json.dumps(schema, indent=1) + "\n"
    if args.output:
        atomic_write_text(args.output, text)
    else:
        print(text, end="")
    return 0
