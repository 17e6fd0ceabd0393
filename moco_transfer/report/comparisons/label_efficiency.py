"""Label efficiency: the initialisations of one task on several amounts of its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..aggregate import FIRST_ROWS, Setting, Table
from ..cells import NOTHING, Cell, transfer_rows
from ..records import BY_SEED, Problem
from ..seed_statistics import Summary, summarize


@dataclass(frozen=True)
class Amount:
    """One amount of labels: ``10%``, ``5-shot`` or ``all``; the number of labelled images, the mean
    over runs that were drawn apart; None where the runs do not say.
    """

    label: str
    images: float | None
    table: Table


@dataclass(frozen=True)
class LabelCurve:
    """The tables of one task that differ in the amount of labels, by rising amount."""

    setting: Setting  # what they share; its task without an amount, its label subset ""
    amounts: tuple[Amount, ...]
    problems: tuple[Problem, ...]

    @cached_property
    def inits(self) -> list[str]:
        """The initialisations of all amounts, random and supervised first."""
        found = dict.fromkeys(row.init for amount in self.amounts for row in amount.table.rows)
        first = [init for init in FIRST_ROWS if init in found]
        return [*first, *(init for init in found if init not in first)]

    @property
    def kinds(self) -> list[str]:
        """The kinds of result that some table has."""
        return list(dict.fromkeys(kind for amount in self.amounts for kind in amount.table.kinds))

    def points(self, init: str, kind: str, metric: str) -> dict[float, Summary]:
        """Return labelled images -> mean, std and n over seeds of one initialisation."""
        found = {}
        for amount in self.amounts:
            row = next((row for row in amount.table.rows if row.init == init), None)
            summary = row.summary(kind, metric) if row else None
            if summary and summary.n and amount.images:
                found[amount.images] = summary
        return found


def build_label_curves(tables: Sequence[Table]) -> list[LabelCurve]:
    """Return a curve for each task, test set, config, engine, norm and precision with two or more
    amounts of labels. An amount with several tables (of other images) is left out and named.
    """
    groups: dict[Setting, list[Table]] = {}
    for table in tables:
        task = table.runs[0].base_task
        groups.setdefault(replace(table.setting, task=task, label_subset=""), []).append(table)
    found = [_curve(setting, members) for setting, members in groups.items()]
    return [curve for curve in found if len(curve.amounts) > 1]


def _curve(setting: Setting, tables: Sequence[Table]) -> LabelCurve:
    by_label: dict[str, list[Table]] = {}
    for table in tables:
        by_label.setdefault(_label(table), []).append(table)
    problems = tuple(
        Problem(
            setting.task, f"{label} labels have {len(several)} tables, of other images: left out."
        )
        for label, several in by_label.items()
        if len(several) > 1
    )
    single = {label: several[0] for label, several in by_label.items() if len(several) == 1}
    images = {label: _num_images(table) for label, table in single.items()}
    images |= {"all": images["all"] or _whole(single, images)} if "all" in images else {}
    amounts = [Amount(label, images[label], table) for label, table in single.items()]
    return LabelCurve(setting, tuple(sorted(amounts, key=_order)), problems)


def _label(table: Table) -> str:
    run = table.runs[0]
    return run.labels or ("a list" if run.label_subset else "all")


def _num_images(table: Table) -> float | None:
    counts = [run.labelled_images for run in table.runs if run.labelled_images]
    return summarize(counts).mean if counts else None


def _whole(tables: dict[str, Table], images: dict[str, float | None]) -> float | None:
    """Return how many images all labels have, by the largest share, for records without it."""
    shares = {label: table.runs[0].label_fraction or 0.0 for label, table in tables.items()}
    largest = max(shares, key=shares.__getitem__)
    count = images[largest]
    return round(count / shares[largest]) if count and shares[largest] else None


def _order(amount: Amount) -> tuple[bool, float, float]:
    run = amount.table.runs[0]
    return amount.label == "all", amount.images or 0.0, run.label_fraction or run.label_shots or 0.0


def label_rows(curve: LabelCurve, kind: str) -> list[dict[str, Cell]]:
    """Return one block of rows for each amount of labels, one row for each initialisation."""
    rows = []
    for amount in curve.amounts:
        if kind not in amount.table.kinds:
            continue
        images = Cell(f"{amount.images:.0f}", amount.images) if amount.images else Cell(NOTHING)
        for row in transfer_rows(amount.table, kind):
            metrics = [name for name in row if name in amount.table.headline_metrics(kind)]
            names = ["init", *metrics, f"Δ {metrics[0]}", "n"]
            cells = {name: row.get(name, Cell(NOTHING)) for name in names}
            rows.append({"labels": Cell(amount.label, amount.images), "images": images, **cells})
    shown = dict.fromkeys(name for row in rows for name in row)
    order = [
        "labels",
        "images",
        "init",
        *(n for n in shown if n not in ("labels", "images", "init")),
    ]
    order.remove("n")
    return [{name: row.get(name, Cell(NOTHING)) for name in [*order, "n"]} for row in rows]


def label_sentences(curve: LabelCurve, *, emphasis: str = "") -> list[str]:
    """Return what the blocks of rows mean; ``emphasis``: how a clear difference looks ("bold")."""
    base = next((a.table.baseline for a in curve.amounts if a.table.baseline), None)
    lines = [
        "Mean ± sample std (n - 1) over n seeds, as in the tables of each amount. Images: the"
        " training images with labels, the same for every row."
    ]
    if base and any(amount.table.has_differences for amount in curve.amounts):
        how = f"; {emphasis} where it exceeds the std of both rows" if emphasis else ""
        lines.append(f"Δ: difference of the means to the {base.init} row on as many labels{how}.")
    if any(amount.table.runs[0].label_subset == BY_SEED for amount in curve.amounts):
        lines.append("Each seed has drawn its own images: the std is one over draws, too.")
    if any(amount.images is None for amount in curve.amounts):
        lines.append("The runs on all labels do not record how many images these are: no point.")
    return lines
