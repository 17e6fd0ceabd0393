r"""The transfer tables as LaTeX, laid out as in the MoCo paper: mean, std and, in brackets, the gap
to the supervised row.

A document needs ``\usepackage{booktabs}`` and ``\usepackage{xcolor}``. A gap is green or red only
where it exceeds the std of both rows, so never at n = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from .aggregate import HEADLINE_METRICS, Row, Table
from .caveats import (
    DAGGER,
    dagger_sentences,
    metric_sentence,
    row_mark,
    separation_sentences,
    setting_sentence,
    version_sentence,
)
from .number_text import NOTHING, difference_text, summary_text
from .published_text import published_cells, published_sentences
from .records import Problem

_KIND_MARKS = {"bbox": "bb", "segm": "mk", "keypoints": "kp"}
_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "Δ": r"$\Delta$", "†": r"$\dagger$", "–": r"\textendash{}", '"': "''",
}  # fmt: skip


def render_latex(tables: Sequence[Table], problems: Sequence[Problem] = ()) -> str:
    r"""Return one ``table`` environment per setting.

    Args:
        tables: From :func:`moco_transfer.report.build_tables`.
        problems: Files that could not be used; they are named as comments at the end, as each
            table's own warnings are named behind it: a paper does not want them printed, its author
            has to see them.

    Returns:
        LaTeX for ``\input``; it ends with a line break.
    """
    blocks = [
        r"% Needs \usepackage{booktabs} and \usepackage{xcolor}. Generated from results.json files;"
        r" do not edit by hand."
    ]
    blocks += [_comment(sentence) for sentence in separation_sentences(tables)]
    blocks += [_environment(table, number) for number, table in enumerate(tables, start=1)]
    blocks += [_comment(f"Warning: {problem}") for problem in problems]
    return "\n\n".join(blocks) + "\n"


def escape_latex(text: str) -> str:
    """Return ``text`` with every character that LaTeX would interpret made literal and its line
    breaks as blanks.
    """
    escaped = "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))
    return escaped.replace(
        "--", "-{}-"
    )  # two hyphens would print as a dash and spoil the name of an option


def _environment(table: Table, number: int) -> str:
    lines = [r"\begin{table}", r"\centering\footnotesize\setlength{\tabcolsep}{2pt}"]
    for kind in table.kinds:
        lines += [*_tabular(table, kind), r"\par\medskip"]
    lines += [
        rf"\caption{{{escape_latex(_caption(table))}}}",
        rf"\label{{tab:transfer-{number}}}",
        rf"\par\smallskip\raggedright\scriptsize {escape_latex(_notes(table))}",
        r"\end{table}",
        *(_comment(f"Warning: {problem}") for problem in table.problems),
    ]
    return "\n".join(lines)


def _tabular(table: Table, kind: str) -> list[str]:
    rows = [_cells(table, row, kind) for row in table.rows]
    shown_kind = kind if len(table.kinds) > 1 else ""
    header = [
        "init",
        *(_metric_header(metric, shown_kind) for metric in HEADLINE_METRICS),
        "published",
        "$n$",
    ]
    if all(cells[-2] == escape_latex(NOTHING) for cells in rows):
        header, rows = header[:-2] + header[-1:], [cells[:-2] + cells[-1:] for cells in rows]
    return [
        rf"\begin{{tabular}}{{l{'c' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _metric_header(metric: str, kind: str) -> str:
    above = rf"^\mathrm{{{_KIND_MARKS[kind]}}}" if kind in _KIND_MARKS else ""
    below = f"_{{{metric[2:]}}}" if metric[2:] else ""
    return f"AP${above}{below}$" if above or below else "AP"


def _cells(table: Table, row: Row, kind: str) -> list[str]:
    """Return the cells of a row: name, one per headline metric, published, n."""
    name = escape_latex(row.init) + (r"$^\dagger$" if row_mark(row) else "")
    metrics = []
    for metric in HEADLINE_METRICS:
        mean_std = summary_text(row.summary(kind, metric), row_n=len(row.runs), plus_minus="±")
        metrics.append(
            escape_latex(mean_std).replace(r"$\pm$", r"\,$\pm$\,") + _gap(table, row, kind, metric)
        )
    return [name, *metrics, _published(table, row, kind), str(len(row.runs))]


def _published(table: Table, row: Row, kind: str) -> str:
    """Return the published values and, below them, our distance in published std: side by side they
    would not fit a page.
    """
    values, distance = (
        text.replace(" / ", "/")
        for text in published_cells(table, row, kind, metrics=HEADLINE_METRICS)
    )
    if distance in ("", NOTHING):
        return escape_latex(values)
    return (
        rf"\begin{{tabular}}{{@{{}}c@{{}}}}{escape_latex(values)}\\\scriptsize"
        rf" {_signs(f'({escape_latex(distance)})')}\end{{tabular}}"
    )


def _gap(table: Table, row: Row, kind: str, metric: str) -> str:
    difference = table.difference(row, kind, metric)
    if difference is None:
        return ""
    text = _signs(f"({difference_text(difference)})")
    if not difference.exceeds_spread:
        return f" {text}"
    return (
        rf" \textcolor{{{'green!50!black' if difference.value > 0 else 'red!70!black'}}}{{{text}}}"
    )


def _signs(text: str) -> str:
    return text.replace("-", "$-$").replace("+", "$+$")


def _caption(table: Table) -> str:
    gaps = (
        f"; in brackets the difference to the {table.baseline.init} row"
        if table.baseline and len(table.rows) > 1
        else ""
    )
    return f"{table.setting.task}: {setting_sentence(table)} Mean ± sample std over n seeds{gaps}."


def _notes(table: Table) -> str:
    sentences = [metric_sentence(table)]
    if table.baseline and len(table.rows) > 1:
        sentences.append("A difference is coloured where it exceeds the std of both rows.")
    sentences += published_sentences(table)
    if any(sentence.startswith("Distance") for sentence in sentences):
        sentences.append("It stands in brackets below the published values.")
    return " ".join(filter(None, [*sentences, *dagger_sentences(table), version_sentence(table)]))


def _comment(text: str) -> str:
    return "% " + " ".join(text.split()).replace(DAGGER, "")
