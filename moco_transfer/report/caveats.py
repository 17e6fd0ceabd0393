"""The sentences around a table: what its runs share, why tables are apart, which rows carry a
dagger, what AP means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moco_transfer.evaluate.metric_names import BBOX_METRICS, RECALL_METRICS

from .aggregate import BASELINES, Row, Setting, Table
from .number_text import NOTHING, p_text, signed_text
from .published_text import published_sentences
from .records import RunRecord

DAGGER = "†"

_COCO_AP = (
    "AP by pycocotools: mean over IoU .50:.05:.95, 101 recall points; AP50 and AP75 at one IoU."
)
_VOC_AP = (
    "AP as Detectron2 evaluates VOC: mean over IoU .50:.05:.95, 11 recall points on VOC 2007 and"
    " the area under the curve on other sets, difficult objects ignored; AP50 and AP75 at one IoU."
)
_KIND_NAMES = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}


def kind_name(kind: str) -> str:
    """Return what a kind of result measures, as a reader would say it (``"bbox"`` -> ``"boxes"``)."""
    return _KIND_NAMES.get(kind, kind)


def run_caveats(run: RunRecord) -> list[str]:
    """Return why this run's numbers need care (weights that covered a part, checks that were
    overruled), or [].
    """
    caveats = []
    if run.weights.get("path") and run.flags.get("allow_partial"):
        coverage = run.weights.get("coverage") or {}
        gaps = _count(coverage.get("missing")) + _count(coverage.get("misshapen"))
        # --allow-partial permits a gap, it does not make one; without a record of the coverage the
        # flag alone decides.
        if gaps or "missing" not in coverage:
            extent = f"{gaps} backbone tensors stayed random" if gaps else "--allow-partial"
            caveats.append(f"started from partly covered weights ({extent})")
    forced = run.flags.get("forced")
    if forced:
        names = ", ".join(map(str, forced)) if isinstance(forced, (list, tuple)) else str(forced)
        caveats.append(f"overruled a check of the config ({names})")
    return caveats


def row_mark(row: Row) -> str:
    """Return the dagger that stands behind the name of a row, or an empty string."""
    return DAGGER if any(run_caveats(run) for run in row.all_runs) else ""


def dagger_sentences(table: Table) -> list[str]:
    """Return one sentence per reason for a dagger, which names the row and the runs."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        for run in row.all_runs:
            for caveat in run_caveats(run):
                by_reason.setdefault((row.init, caveat), []).append(run.folder)
    return [
        f"{DAGGER} row {init}: {caveat} in {', '.join(folders)}."
        for (init, caveat), folders in by_reason.items()
    ]


def separation_sentences(tables: Sequence[Table]) -> list[str]:
    """Say, for each task and test set with several tables, what the runs differ in and that they
    are not averaged.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[Setting]] = {}
    for table in tables:
        groups.setdefault((table.setting.task, table.setting.test_set), []).append(table.setting)
    sentences = []
    for (task, _), settings in groups.items():
        parts = []
        keys = {
            "config_hash": "config hash",
            "engine": "engine",
            "norm": "norm",
            "label_subset": "the images whose labels they use",
        }
        for key, label in keys.items():
            found = sorted({getattr(setting, key) for setting in settings})
            if len(found) > 1:
                parts.append(f"{label} ({', '.join(_short(key, value) for value in found)})")
        if parts:
            why = f"because its runs differ in {' and '.join(parts)}"
            sentences.append(
                f"{task}: {len(settings)} tables, {why}; such runs are never averaged."
            )
    return sentences


def _short(key: str, value: str) -> str:
    if key == "label_subset":
        return value[:8] or "all"
    return value[:8] if key == "config_hash" else value


def setting_sentence(table: Table) -> str:
    """Return engine, norm, iterations and the rest that the runs of a table share, as one sentence."""
    setting, runs = table.setting, table.runs
    iterations = _joined(run.iterations for run in runs)
    world_size = _joined(run.world_size for run in runs)
    train_set = _joined(" + ".join(run.train_set) for run in runs if run.train_set)
    trained = f"trained on {train_set}, " if train_set else ""
    processes = f"{world_size} process" + ("" if world_size == "1" else "es")
    tested = f"tested on {' + '.join(setting.test_set)}"
    how = (
        f"engine {setting.engine}, norm {setting.norm}, {iterations} iterations, {processes},"
        f" config {setting.config_hash[:8]}"
    )
    how += f", label subset {setting.label_subset[:8]}" if setting.label_subset else ""
    return f"{trained}{tested}; {how}."


def metric_sentence(table: Table) -> str:
    """Return what AP means in this table:

    COCO's definition where COCO's size metrics are there, VOC's otherwise.
    """
    # VOC's evaluator gives no AP by object size and no recall, COCO's does; results.json does not
    # name its evaluator.
    found = {metric for run in table.runs for group in run.metrics.values() for metric in group}
    is_coco = bool(found & {*BBOX_METRICS[3:], *RECALL_METRICS}) or table.kinds != ["bbox"]
    return _COCO_AP if is_coco else _VOC_AP


def finding_sentences(table: Table) -> list[str]:
    """Return, for each row but the baseline, how far its AP lies from the baseline's and whether
    the spread over seeds allows to say so.
    """
    sentences = []
    for row in table.rows:
        for kind in table.kinds:
            difference = table.difference(row, kind, "AP")
            if difference is None:
                continue
            ours, theirs = row.summary(kind, "AP"), table.baseline.summary(kind, "AP")
            gap = signed_text(difference.value)
            where = (
                "level with"
                if gap == "0.0"
                else f"{gap.lstrip('+-')} {'above' if difference.value > 0 else 'below'}"
            )
            what = "AP" if len(table.kinds) == 1 else f"AP of {kind_name(kind)}"
            if difference.exceeds_spread:
                verdict = "more than the std of both rows"
            elif min(ours.n, theirs.n) < 2:
                verdict = "a single run shows no spread, so nothing follows"
            else:
                verdict = "within the std over seeds, so no difference is shown"
            test = (
                f", paired t test p {p_text(difference.test)}"
                if difference.test and p_text(difference.test) != NOTHING
                else ""
            )
            sentences.append(f"{row.init}: {what} {where} {table.baseline.init}, {verdict}{test}.")
    return sentences


def legend_sentences(table: Table, *, emphasis: str) -> list[str]:
    """Return what a reader has to know below a table: what its columns are, published sources,
    versions, daggers.

    Args:
        table: The table.
        emphasis: How a clear difference looks, e.g. ``"bold"``.
    """
    lines = [f"{metric_sentence(table)} Mean ± sample std (n - 1) over n seeds; n = 1 has no ±."]
    if table.baseline and len(table.rows) > 1:
        lines.append(
            f"Δ: difference of the means to the {table.baseline.init} row; {emphasis} where it"
            " exceeds the std of both rows."
        )
        tests = [
            d.test
            for row in table.rows
            for kind in table.kinds
            if (d := table.difference(row, kind, "AP"))
        ]
        if any(tests):
            lines.append(
                f"p: two-sided paired t test against the {table.baseline.init} row over the seeds"
                " that both rows have."
            )
    lines += [
        baseline_sentence(table),
        *published_sentences(table),
        version_sentence(table),
        *dagger_sentences(table),
    ]
    return [line for line in lines if line]


def baseline_sentence(table: Table) -> str:
    """Return which row is the baseline, or that none is, where a reader would expect the supervised
    row; else "".
    """
    if len(table.rows) < 2 or (
        table.baseline and table.baseline.init in (BASELINES[0], table.baseline_name)
    ):
        return ""
    if table.baseline is None:
        return (
            f"No differences: no row with runs is called {' or '.join(BASELINES)}; --baseline NAME"
            " takes another."
        )
    return (
        f"The baseline is the {table.baseline.init} row: no row with runs is called {BASELINES[0]};"
        " --baseline NAME takes another."
    )


def version_sentence(table: Table) -> str:
    """Return the versions and commits of the runs; where runs differ, every version that occurs."""
    packages = dict.fromkeys(name for run in table.runs for name in run.versions)
    parts = [
        f"{name} {_joined(run.versions.get(name, '?') for run in table.runs)}" for name in packages
    ]
    commits = _joined(run.git[:7] for run in table.runs if run.git)
    return (
        "Versions: " + ", ".join([*parts, *([f"commit {commits}"] if commits else [])]) + "."
        if parts or commits
        else ""
    )


def pretrain_text(row: Row) -> str:
    """Return what the weights of a row's runs were pre-trained with, e.g. ``moco, epoch 200``, or
    an empty string.
    """
    texts = []
    for run in row.runs:
        stamp = run.weights.get("stamp") or {}
        parts = [str(stamp["mechanism"])] if stamp.get("mechanism") else []
        if stamp.get("epoch") is not None:
            parts.append(f"epoch {stamp['epoch']}")
        texts.append(", ".join(parts))
    return _joined(filter(None, texts), separator=" / ")


def _count(names: object) -> int:
    # Runs may record the names or only their number.
    return (
        names
        if isinstance(names, int)
        else len(names)
        if isinstance(names, (list, tuple, dict))
        else 0
    )


def _joined(values: Iterable[object], separator: str = ", ") -> str:
    return separator.join(dict.fromkeys(map(str, values)))
