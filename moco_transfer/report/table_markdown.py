"""The transfer tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .aggregate import HEADLINE_METRICS, Difference, Row, Table
from .caveats import (
    kind_name,
    legend_sentences,
    pretrain_text,
    row_mark,
    separation_sentences,
    setting_sentence,
)
from .number_text import NOTHING, difference_text, p_text, summary_text
from .published_text import published_cells
from .records import Problem


def render_markdown(tables: Sequence[Table], problems: Sequence[Problem] = ()) -> str:
    """Return all tables as one Markdown text, each with its legend and its warnings below it.

    Args:
        tables: From :func:`moco_transfer.report.build_tables`.
        problems: Files that could not be used; they are named after the last table.

    Returns:
        Markdown that ends with one line break.
    """
    blocks = [_bullets(separation_sentences(tables))]
    for table in tables:
        blocks.append(f"### {_plain(table.setting.task)}")
        blocks.append(_plain(setting_sentence(table)[0].upper() + setting_sentence(table)[1:]))
        for kind in table.kinds:
            blocks.append(f"**{kind_name(kind).capitalize()}**" if len(table.kinds) > 1 else "")
            blocks.append(_grid(table, kind))
        blocks.append(_legend(table))
    if problems:
        blocks.append(_bullets([f"**Warning:** {problem}" for problem in problems]))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _grid(table: Table, kind: str) -> str:
    rows = [_cells(table, row, kind) for row in table.rows]
    # A column that says nothing in any row is left out; what a table always shows stays, dash or
    # not.
    always = {"init", "n", "engine", *HEADLINE_METRICS}
    if table.baseline and len(table.rows) > 1:
        always |= {f"Δ {metric}" for metric in HEADLINE_METRICS}
    header = [
        name
        for name in rows[0]
        if name in always or any(cells[name] not in ("", NOTHING) for cells in rows)
    ]
    lines = [_line(header), _line(["---"] * len(header))]
    return "\n".join(lines + [_line([cells[name] for name in header]) for cells in rows])


def _cells(table: Table, row: Row, kind: str) -> dict[str, str]:
    differences = {metric: table.difference(row, kind, metric) for metric in HEADLINE_METRICS}
    published, distance = published_cells(table, row, kind, metrics=HEADLINE_METRICS)
    return {
        "init": row.init + row_mark(row),
        "pre-train": pretrain_text(row),
        **{
            metric: summary_text(row.summary(kind, metric), row_n=len(row.runs))
            for metric in HEADLINE_METRICS
        },
        **{f"Δ {metric}": _emphasised(difference) for metric, difference in differences.items()},
        "p (AP)": p_text(differences["AP"].test if differences["AP"] else None),
        f"published {' / '.join(HEADLINE_METRICS)}": published,
        "distance in std": distance,
        "n": str(len(row.runs)),
        "engine": table.setting.engine,
    }


def _emphasised(difference: Difference | None) -> str:
    text = difference_text(difference)
    return f"**{text}**" if difference and difference.exceeds_spread else text


def _legend(table: Table) -> str:
    warnings = [f"**Warning:** {problem}" for problem in table.problems]
    return _bullets([*legend_sentences(table, emphasis="bold"), *warnings])


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines if line)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell or NOTHING).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    # A line break would end the cell or the bullet; names come from files, so they may hold
    # anything.
    return " ".join(text.split())
