"""The transfer tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .aggregate import Table
from .cells import NOTHING, Cell, kind_name, transfer_grid
from .records import Problem
from .sentences import legend_sentences, separation_sentences, setting_sentence


def render_markdown(tables: Sequence[Table], problems: Sequence[Problem] = ()) -> str:
    """Return all tables as one Markdown text, each with its legend and its warnings below it, and
    the files that could not be used at the end.
    """
    blocks = [_bullets(separation_sentences(tables))]
    for table in tables:
        blocks += [f"### {_plain(table.setting.task)}", _plain(setting_sentence(table))]
        for kind in table.kinds:
            blocks += [f"**{kind_name(kind).capitalize()}**"] if len(table.kinds) > 1 else []
            blocks.append(_grid(table, kind))
        legend = legend_sentences(table, emphasis="bold")
        blocks.append(_bullets([*legend, *_warnings(table.problems)]))
    blocks.append(_bullets(_warnings(problems)))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _grid(table: Table, kind: str) -> str:
    rows = transfer_grid(table, kind).rows
    header = [name.replace(": ", " ") for name in rows[0]]
    lines = [header, ["---"] * len(header), *(map(_text, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(cell: Cell) -> str:
    text = _plain(cell.text or NOTHING).replace("|", "\\|")
    return f"**{text}**" if cell.style in ("better", "worse") else text


def _warnings(problems: Iterable[Problem]) -> list[str]:
    return [f"**Warning:** {problem}" for problem in problems]


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _plain(text: str) -> str:
    return " ".join(text.split())  # a line break in a name would end the cell or the bullet
