"""The command lines of README, CONTRIBUTING and docs/, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "docs" / "results" / "README.md",
]
_PROGRAMS = (
    r"(?:\S*bin/)?moco-transfer |python -m moco_transfer |python tools/|torchrun |python -m pytest"
)
_OTHER = r"make |git |pip |export |pre-commit |(?:python|\S*bin/pip) -m venv|python -m venv"
_START = re.compile(rf"(?:MOCO_TRANSFER_\w+=\S+ )?(?:{_PROGRAMS}|{_OTHER})")


def command_lines(page: Path) -> list[str]:
    """Return the commands of a page: lines of indented and fenced blocks, and code within lines.

    Continued lines are joined, and shell comments removed. Code that holds a placeholder (``...``,
    ``VERB``) is no command.
    """
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    blocks = re.findall(r"^(?: {4}|\t)(.+)$", text, re.MULTILINE)
    for fenced in re.findall(
        r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    ):
        blocks += fenced.splitlines()
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", " ".join(text.split("\n")))
    found = [re.sub(r"\s+#.*", "", line).strip() for line in blocks + inline]
    found = [part.strip() for line in found for part in line.split(" && ")]
    return [
        line
        for line in dict.fromkeys(found)
        if _START.match(f"{line} ")
        and " " in line
        and not re.search(r"\.\.\.|…|\bVERB\b|\bFILE\b|\bNAME\b|\bFOLDER\b|\bDIR\b", line)
    ]


def program_words(command: str) -> str:
    """Return a command as ``moco-transfer VERB …``, whichever way it starts the program."""
    tools = {"train_net": "train", "knn_eval": "knn", "linear_eval": "linear"}
    command = re.sub(r"^torchrun (?:--?\w[\w-]* \S+ )*", "python ", command)
    command = re.sub(
        r"^(?:\S*bin/moco-transfer|python -m moco_transfer)(?= )", "moco-transfer", command
    )
    return re.sub(
        r"^python tools/(?!bench_|plot_|screenshot_|count_|gpu_check)(\w+)\.py",
        lambda match: f"moco-transfer {tools.get(match[1], match[1])}",
        command,
    )
