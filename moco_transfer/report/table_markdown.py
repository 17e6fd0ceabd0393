"""The transfer tables as Markdown, and the sections of a README that hold them.

A section is between ``<!-- results:begin -->`` and ``<!-- results:end -->``. The first may name the
records that it is made from: ``<!-- results:begin docs/results/voc -->``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .aggregate import Table
from .cells import NOTHING, Cell, kind_name, transfer_grid
from .records import Problem
from .sentences import legend_sentences, separation_sentences, setting_sentence

_END = "<!-- results:end -->"
_BEGIN = re.compile(r"<!-- results:begin((?: [^\s<>]+)*) -->")


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


def marked_paths(text: str) -> list[tuple[str, ...]]:
    """Return what each section of a Markdown file names, () for a section that names nothing."""
    return [tuple(match[1].split()) for match in _BEGIN.finditer(text)]


def insert_between_markers(text: str, content: str, paths: tuple[str, ...] = ()) -> str:
    """Return ``text`` with ``content`` between the two markers of the section that names ``paths``.

    Raises:
        ValueError: If a marker is missing, occurs more than once, or the order is wrong.
    """
    begin = f"<!-- results:begin{''.join(f' {path}' for path in paths)} -->"
    sections = marked_paths(text)
    wanted = {begin: (sections.count(paths), 1), _END: (text.count(_END), len(sections))}
    for marker, (found, expected) in wanted.items():
        if found != expected:
            once = "once" if expected == 1 else f"{expected} times, once for each section"
            raise ValueError(f"expected the line {marker} {once}, found it {found} times")
    head, rest = text.split(begin)
    inside, end, tail = rest.partition(_END)
    if not end or _BEGIN.search(inside):
        raise ValueError(f"expected {begin} before its {_END}, found them the other way round")
    return f"{head}{begin}\n\n{content.strip()}\n\n{_END}{tail}"
