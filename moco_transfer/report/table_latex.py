r"""The transfer tables as LaTeX, laid out as in the MoCo paper: mean, std and, in brackets, the gap
to the baseline row, in colour where it exceeds the std of both rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from .aggregate import HEADLINE_METRICS, Table
from .cells import DAGGER, DISTANCE, NOTHING, PUBLISHED, Cell, transfer_rows
from .records import Problem
from .templating import render

_KIND_MARKS = {"bbox": "bb", "segm": "mk", "keypoints": "kp"}
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
        rows=_rows,
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
    header = ["init"]
    for metric in HEADLINE_METRICS:
        below = f"_{{{metric[2:]}}}" if metric[2:] else ""
        header.append(f"AP${above}{below}$" if above or below else "AP")
    rows = transfer_rows(table, kind)
    header += ["published", "$n$"] if PUBLISHED in rows[0] else ["$n$"]
    lines = [header]
    for row in rows:
        name = escape_latex(row["init"].text).replace(r"$\dagger$", r"$^\dagger$")
        cells = [name, *(_mean(row[m], row.get(f"Δ {m}")) for m in HEADLINE_METRICS)]
        cells += [_published(row)] if PUBLISHED in row else []
        lines.append([*cells, row["n"].text])
    return lines


def _mean(mean: Cell, gap: Cell | None) -> str:
    text = escape_latex(mean.text).replace(r" $\pm$ ", r"\,$\pm$\,")
    if gap is None or gap.text == NOTHING:
        return text
    bracket = _signs(f"({gap.text})")
    colour = _COLOURS.get(gap.style)
    return f"{text} " + (rf"\textcolor{{{colour}}}{{{bracket}}}" if colour else bracket)


def _published(row: dict[str, Cell]) -> str:
    """Return the published values and, below them, our distance: next to each other they would not
    fit a page.
    """
    values = escape_latex(row[PUBLISHED].text.replace(" / ", "/"))
    distance = row[DISTANCE].text.replace(" / ", "/") if DISTANCE in row else ""
    if distance in ("", NOTHING):
        return values
    below = rf"\scriptsize {_signs(f'({escape_latex(distance)})')}"
    return rf"\begin{{tabular}}{{@{{}}c@{{}}}}{values}\\{below}\end{{tabular}}"


def _signs(text: str) -> str:
    return text.replace("-", "$-$").replace("+", "$+$")


def _comment(what: object) -> str:
    return " ".join(str(what).split()).replace(DAGGER, "")
