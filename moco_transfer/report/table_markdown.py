"""The transfer tables as Markdown, and the sections of a README that hold them.

A section is between ``<!-- results:begin FOLDER ... -->``, which names the records that it is made
from, and ``<!-- results:end -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from moco_transfer.runtime.errors import InputError

from .aggregate import Table
from .cells import NOTHING, Cell, signed_text, transfer_rows
from .comparisons.label_efficiency import build_label_curves, label_rows
from .published import PublishedRow, PublishedSetting
from .records import Problem
from .templating import render

_BEGIN, _END = "<!-- results:begin", "<!-- results:end -->"
_SECTION = re.compile(rf"({_BEGIN}((?: [^\s<>]+)+) -->).*?{_END}", re.DOTALL)


def render_markdown(tables: Sequence[Table], problems: Sequence[Problem] = ()) -> str:
    """Return all tables as one Markdown text, each with its legend and its warnings below it, and
    the files that could not be used at the end.
    """
    text = render(
        "tables.md",
        tables=tables,
        curves=build_label_curves(tables),
        problems=problems,
        grid=_grid,
        label_grid=lambda curve, kind: markdown_grid(label_rows(curve, kind)),
        plain=_plain,
    )
    return text.rstrip("\n") + "\n"


def render_published(setting: PublishedSetting) -> str:
    """Return all rows of a published setting as Markdown: values, gap to the supervised row of the
    same source, source.
    """
    return render("published.md", setting=setting, gap=_gap)


def _gap(setting: PublishedSetting, row: PublishedRow, column: str) -> str:
    """Return the gap to the supervised row: the paper's, or that of an independent row's source."""
    groups = {id(r): r.source if r.is_independent else "" for r in setting.rows}
    same = (r for r in setting.rows if groups[id(r)] == groups[id(row)])
    base = next((r for r in same if r.init == "supervised"), None)
    if base is None or row.init in ("supervised", "random"):
        return ""
    return f" ({signed_text(row.values[column] - base.values[column])})"


def _grid(table: Table, kind: str) -> list[list[str]]:
    return markdown_grid(transfer_rows(table, kind))


def markdown_grid(rows: Sequence[Mapping[str, Cell]]) -> list[list[str]]:
    """Return rows of cells as lines of texts, the header first."""
    header = [name.replace(": ", " ") for name in rows[0]]
    return [header, ["---"] * len(header), *([*map(_text, row.values())] for row in rows)]


def _text(cell: Cell) -> str:
    text = _plain(cell.text or NOTHING).replace("|", "\\|")
    return f"**{text}**" if cell.style in ("better", "worse") else text


def _plain(text: object) -> str:
    return " ".join(str(text).split())  # a line break in a name would end the cell or the bullet


def fill_sections(text: str, table_of: Callable[[tuple[str, ...]], str]) -> str:
    """Return a Markdown file with every section filled by ``table_of`` the folders that it names.

    Raises:
        InputError: If there is no section, or one has not exactly one beginning and end.
    """
    found = len(_SECTION.findall(text)), text.count(_BEGIN), text.count(_END)
    if not found[0] or len(set(found)) > 1:
        expected = f"expected {_BEGIN} FOLDER ... --> before each {_END}"
        raise InputError(f"{expected}, found {found[1]} and {found[2]} in {found[0]} sections.")

    def filled(section: re.Match[str]) -> str:
        return f"{section[1]}\n\n{table_of(tuple(section[2].split())).strip()}\n\n{_END}"

    return _SECTION.sub(filled, text)
