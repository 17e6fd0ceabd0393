"""What the site takes from the code, so that it cannot become stale.

A page names it in a comment of its own line: ``<!-- generated: cli -->`` is replaced by each verb's
``--help``, ``pretrain-keys``, ``detection-keys`` and ``segmentation-keys`` by the config schemas,
``configs`` by the list of bundled configs.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from unittest import mock

REPOSITORY = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill the markers of a page; called by MkDocs."""
    return re.sub(r"<!-- generated: ([\w-]+) -->", lambda m: GENERATED[m[1]](), markdown)


def help_text(*words: str) -> str:
    """Return what ``moco-transfer WORDS --help`` prints, 88 columns wide."""
    from moco_transfer.cli.main import main

    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS="88"),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([*words, "--help"])
    return printed.getvalue()


def _cli() -> str:
    from moco_transfer.cli.main import VERBS

    sections = [f"## {verb}\n\n```text\n{help_text(verb)}```\n" for verb in VERBS]
    return f"```text\n{help_text()}```\n\n" + "\n".join(sections)


def _schema(name: str) -> str:
    """Return a schema as it is in the source, with the comments on its keys."""
    file = REPOSITORY / "moco_transfer" / "config" / f"{name}.yaml"
    return f"```yaml\n{file.read_text(encoding='utf-8')}```"


def _configs() -> str:
    """Return tables of the bundled configs: name, and the first sentence of the file's header."""
    lines = []
    for folder in sorted((REPOSITORY / "configs").iterdir()):
        lines += [f"### configs/{folder.name}", "", "| config | what it is |", "| --- | --- |"]
        for file in sorted(folder.glob("[!B]*.yaml")):
            header = re.match(r"(?:# .*\n)+", file.read_text(encoding="utf-8"))
            text = " ".join(line[2:] for line in (header[0] if header else "").splitlines())
            text = re.split(r"(?<=\w\w)\. |; | Command: ", text)[0].rstrip(".")
            lines.append(f"| `{file.stem}` | {text.replace('|', '/')} |")
        lines.append("")
    return "\n".join(lines)


GENERATED = {
    "cli": _cli,
    "configs": _configs,
    "pretrain-keys": lambda: _schema("pretrain_schema"),
    "detection-keys": lambda: _schema("detection_schema"),
    "segmentation-keys": lambda: _schema("segmentation_schema"),
}
