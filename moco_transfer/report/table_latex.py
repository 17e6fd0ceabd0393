r"""The transfer tables as LaTeX, laid out as in the MoCo paper: mean, std and, in brackets, the gap
to the baseline row, in colour where it exceeds the std of both rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from .aggregate import Table
from .cells import DAGGER, DISTANCE, NOTHING, PUBLISHED, Cell, transfer_rows
from .comparisons.label_efficiency import LabelCurve, build_label_curves, label_rows
from .records import Problem
from .templating import render

_KIND_MARKS = {"bbox": "bb", "segm": "mk", "keypoints": "kp", "densepose": "dp", "sem_seg": "sem"}
_SIDE_BY_SIDE = 3  # with more metrics, a difference is below its mean, the rest small
_COLOURS = {"better": "green!50!black", "worse": "red!70!black"}
_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    "Δ": r"$\Delta$", "†": r"$\dagger$", "–": r"\textendash{}", '"': "''",
}  # fmt: skip


def render_latex(tables: Sequence[Table], problems: Sequence[Problem] = ()) -> str:
    r"""Return one ``table`` environment per setting, for ``\input``.

    Problems with files and the tables' warnings become comments: the author sees them, the paper
    does not print them.
    """
    return render(
        "table.tex",
        tables=tables,
        curves=build_label_curves(tables),
        rows=_rows,
        label_blocks=_label_blocks,
        problems=problems,
        tex=escape_latex,
        comment=_comment,
    )


def escape_latex(text: str) -> str:
    """Return ``text`` with every special character made literal and line breaks as blanks."""
    escaped = "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))
    return escaped.replace("--", "-{}-")  # two hyphens would print as a dash


def _rows(table: Table, kind: str) -> list[list[str]]:
    """Return the cells of one kind of result, the header first."""
    mark = _KIND_MARKS.get(kind) if len(table.kinds) > 1 else None
    above = rf"^\mathrm{{{mark}}}" if mark else ""
    metrics = table.headline_metrics(kind)
    header = ["init"]
    for metric in metrics:
        name, below = (metric, "") if kind == "sem_seg" else (metric[:2], metric[2:])
        below = f"_{{{below}}}" if below else ""
        header.append(f"{name}${above}{below}$" if above or below else name)
    rows = transfer_rows(table, kind)
    published = next((name for name in rows[0] if name.startswith(PUBLISHED)), None)
    header += ["published", "$n$"] if published else ["$n$"]
    lines = [header]
    stacked = len(metrics) > _SIDE_BY_SIDE
    for row in rows:
        name = escape_latex(row["init"].text).replace(r"$\dagger$", r"$^\dagger$")
        cells = [name, *(_mean(row[m], row.get(f"Δ {m}"), stacked) for m in metrics)]
        if published:
            values = _published(row[published], row.get(DISTANCE))
            cells.append(rf"\scriptsize {values}" if stacked else values)
        lines.append([*cells, row["n"].text])
    return lines


def _label_blocks(curve: LabelCurve, kind: str) -> list[list[list[str]]]:
    """Return the header, and a block of lines for each amount of labels, which is named once."""
    rows = label_rows(curve, kind)
    blocks: dict[str, list[list[str]]] = {}
    for row in rows:
        block = blocks.setdefault(row["labels"].text, [])
        cells = [escape_latex(cell.text) for cell in row.values()]
        cells = [
            _signs(c) if name.startswith("Δ") else c for name, c in zip(row, cells, strict=True)
        ]
        block.append(["", "", *cells[2:]] if block else cells)
    return [[list(map(escape_latex, rows[0]))], *blocks.values()]


def _mean(mean: Cell, gap: Cell | None, stacked: bool) -> str:
    number, _, std = escape_latex(mean.text).partition(r" $\pm$ ")
    std = rf"\,$\pm$\,{std}" if std else ""
    text = number + (rf"{{\scriptsize{std}}}" if stacked and std else std)
    if gap is None or gap.text == NOTHING:
        return text
    bracket = _signs(f"({gap.text})")
    if colour := _COLOURS.get(gap.style):
        bracket = rf"\textcolor{{{colour}}}{{{bracket}}}"
    return _stack(text, bracket) if stacked else f"{text} {bracket}"


def _published(published: Cell, distance: Cell | None) -> str:
    """Return the published values and, below them, our distance: next to each other they would not
    fit a page.
    """
    values = escape_latex(published.text.replace(" / ", "/"))
    below = distance.text.replace(" / ", "/") if distance else ""
    if below in ("", NOTHING):
        return values
    return _stack(values, _signs(f"({escape_latex(below)})"))


def _stack(text: str, below: str) -> str:
    return rf"\begin{{tabular}}{{@{{}}c@{{}}}}{text}\\\scriptsize {below}\end{{tabular}}"


def _signs(text: str) -> str:
    return text.replace("-", "$-$").replace("+", "$+$")


def _comment(what: object) -> str:
    return " ".join(str(what).split()).replace(DAGGER, "")
