"""What the tables say, as data: ``report --json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .aggregate import Row, Table
from .cells import pretrain_text, published_row, run_caveats
from .comparisons.across_tasks import Comparison
from .records import Problem
from .sentences import legend_sentences, separation_sentences


def table_facts(tables: Sequence[Table], problems: Sequence[Problem] = ()) -> dict[str, Any]:
    """Return all tables with their rows and warnings, in the order of the text."""
    return {
        "schema": "moco_transfer.report/1",
        "tables": [_table(table) for table in tables],
        "remarks": separation_sentences(tables),
        "problems": list(problems),
    }


def _table(table: Table) -> dict[str, Any]:
    return {
        "setting": table.setting,
        "baseline": table.baseline.init if table.baseline else None,
        "kinds": table.kinds,
        "rows": [_row(table, row) for row in table.rows],
        "remarks": legend_sentences(table, emphasis="bold"),
        "problems": table.problems,
    }


def _row(table: Table, row: Row) -> dict[str, Any]:
    return {
        "init": row.init,
        "pretrain": pretrain_text(row),
        "n": len(row.runs),
        "seeds": [run.seed for run in row.runs],
        "runs": [run.folder for run in row.runs],
        "conflicts": [run.folder for run in row.conflicts],
        "caveats": list(dict.fromkeys(why for run in row.all_runs for why in run_caveats(run))),
        "metrics": {
            f"{kind}/{metric}": _metric(table, row, kind, metric) for kind, metric in row.values
        },
        "intervals": {k: table.intervals.get((row.init, k)) for k in table.kinds},
        "published": {
            column: value
            for kind in table.kinds
            if (found := published_row(table, row, kind))
            for column, value in found[1].values.items()
        },
    }


def _metric(table: Table, row: Row, kind: str, metric: str) -> dict[str, Any]:
    summary = row.summary(kind, metric)
    return {
        "mean": summary.mean,
        "std": summary.std,
        "n": summary.n,
        "by_seed": row.values[kind, metric],
        "difference": table.difference(row, kind, metric),
    }


def comparison_facts(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the initialisations over all tasks: ``report --summary --json``."""
    return [
        {
            "title": one.title,
            "kind": one.kind,
            "base": one.base,
            "tasks": [
                {"name": task.name, "kind": task.kind, "metric": task.metric, "means": task.means}
                for task in one.tasks
            ],
            "standings": one.standings,
            "friedman": one.friedman,
            "problems": one.problems,
        }
        for one in comparisons
    ]
