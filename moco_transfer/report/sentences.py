"""The sentences around a table: what its runs share, why tables are apart, what its columns mean,
which rows carry a dagger, and where the published numbers come from.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from moco_transfer.evaluate.metric_names import (
    BBOX_METRICS,
    LVIS_METRICS,
    RECALL_METRICS,
    class_metric,
    headline_metric,
    is_class_metric,
)

from .aggregate import BASELINES, NUM_SAMPLES, Difference, Row, Setting, Table
from .cells import DAGGER, NOTHING, interval_text, kind_name, p_text, published_row, run_caveats
from .published import PublishedSetting
from .records import CONFIG_FILE, RunRecord, text_of

_COCO_AP = (
    "AP by COCO's rules: mean over IoU .50:.05:.95, 101 recall points; AP50 and AP75 at one IoU."
)
_KEYPOINT_AP = (
    "AP by COCO's rules: mean over OKS .50:.05:.95, the similarity of keypoints, 101 recall points;"
    " AP50 and AP75 at one OKS, APm and APl of medium and large objects."
)
_DENSEPOSE_AP = (
    "AP as Detectron2's DensePose evaluates it: mean over GPS .50:.05:.95, the geodesic similarity"
    " of points on the body; AP50 and AP75 at one GPS, APm and APl of medium and large people."
)
_LVIS_AP = (
    "AP by LVIS's rules: COCO's, each class on the images that are labelled for it alone, 300"
    " detections an image; APr, APc and APf of rare, common and frequent classes."
)
_CITYSCAPES_AP = (
    "AP by cityscapesscripts: mean over IoU .50:.05:.95, area under the curve, objects in groups"
    " ignored; AP50 at one IoU."
)
_VOC_AP = (
    "AP as Detectron2 evaluates VOC: mean over IoU .50:.05:.95, 11 recall points on VOC 2007 and"
    " the area under the curve on other sets, difficult objects ignored; AP50 and AP75 at one IoU."
)
_MIOU = (
    "IoU and accuracy of pixels as Detectron2 computes them, from one confusion matrix of all test"
    " images: mIoU and mACC are means over the classes that have a labelled pixel, pACC is the"
    " share of pixels that are right; ignored pixels count nowhere."
)
_OTHER_METRICS = {"keypoints": _KEYPOINT_AP, "densepose": _DENSEPOSE_AP, "sem_seg": _MIOU}
_SEPARATING = {
    "config_hash": "config hash",
    "engine": "engine",
    "norm": "norm",
    "precision": "precision",
    "label_subset": "the images whose labels they use",
}
_NAMED = 5  # classes, at most
_BATCH = re.compile(r"^ +IMS_PER_BATCH: *(\d{1,9}) *$", re.MULTILINE)


def _joined(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def separation_sentences(tables: Sequence[Table]) -> list[str]:
    """Return, for each task and test set with several tables, what their runs differ in."""
    groups: dict[tuple[str, tuple[str, ...]], list[Setting]] = {}
    for table in tables:
        groups.setdefault((table.setting.task, table.setting.test_set), []).append(table.setting)
    sentences = []
    for (task, _), settings in groups.items():
        parts = []
        for key, name in _SEPARATING.items():
            values = sorted({getattr(setting, key) for setting in settings})
            digits = 8 if key in ("config_hash", "label_subset") else None
            shown = ", ".join(value[:digits] or "all" for value in values)
            parts += [f"{name} ({shown})"] if len(values) > 1 else []
        why = f"because its runs differ in {' and '.join(parts)}; such runs are never averaged."
        sentences += [f"{task}: {len(settings)} tables, {why}"] if parts else []
    return sentences


def setting_sentence(table: Table) -> str:
    """Return data sets, engine, norm, iterations and config of a table as one sentence."""
    setting, runs = table.setting, table.own_runs
    if not runs:
        return f"Tested on {' + '.join(setting.test_set)}: predictions of other programs."
    train_set = _joined(" + ".join(run.train_set) for run in runs if run.train_set)
    trained = f"Trained on {train_set}, t" if train_set else "T"
    world_size = _joined(run.world_size for run in runs)
    precision = f", {setting.precision}" if setting.precision else ""
    subset = f", label subset {setting.label_subset[:8]}" if setting.label_subset else ""
    return (
        f"{trained}ested on {' + '.join(setting.test_set)}; engine {setting.engine}, norm"
        f" {setting.norm}{precision}, {_joined(run.iterations for run in runs)} iterations,"
        f" {world_size} process{'' if world_size == '1' else 'es'},"
        f" config {setting.config_hash[:8]}{subset}."
    )


def metric_sentence(table: Table) -> str:
    """Return what AP means in this table, for each kind of result where that differs."""
    kinds: dict[str, list[str]] = {}
    for kind in table.kinds:
        kinds.setdefault(_meaning_of_ap(table, kind), []).append(kind_name(kind).capitalize())
    if len(kinds) == 1:
        return next(iter(kinds))
    return " ".join(f"{' and '.join(names)}: {meaning}" for meaning, names in kinds.items())


def _meaning_of_ap(table: Table, kind: str) -> str:
    # results.json does not name its evaluator: the metrics that only one of them gives do.
    found = {metric for run in table.runs for metric in run.metrics.get(kind, {})}
    if kind in _OTHER_METRICS:
        return _OTHER_METRICS[kind]
    if found & {*LVIS_METRICS} - {*BBOX_METRICS}:
        return _LVIS_AP
    if kind == "segm" and "AP75" not in found:
        return _CITYSCAPES_AP
    is_coco = kind != "bbox" or found & {*BBOX_METRICS[3:], *RECALL_METRICS}
    return _COCO_AP if is_coco else _VOC_AP


def legend_sentences(table: Table, *, emphasis: str) -> list[str]:
    """Return what is said below a table; ``emphasis``: how a clear difference looks ("bold")."""
    lines = [f"{metric_sentence(table)} Mean ± sample std (n - 1) over n seeds; n = 1 has no ±."]
    if table.baseline and table.has_differences:
        base = table.baseline.init
        how = f"{emphasis} where it exceeds the std of both rows"
        lines.append(f"Δ: difference of the means to the {base} row; {how}.")
        if any(difference.test for _, _, difference in _differences(table)):
            pairs = "over the seeds that both rows have"
            lines.append(f"p: two-sided paired t test against the {base} row {pairs}.")
        lines += interval_sentences(table)
    lines += [*_absent_sentences(table), *_baseline_sentences(table), *published_sentences(table)]
    return [*lines, *version_sentences(table), *dagger_sentences(table)]


def _differences(table: Table) -> Iterator[tuple[Row, str, Difference]]:
    """Yield the rows' differences in what each kind of result is judged by."""
    for row, kind in itertools.product(table.rows, table.kinds):
        if difference := table.difference(row, kind, headline_metric(kind)):
            yield row, kind, difference


def _judged_by(table: Table) -> str:
    return " and ".join(dict.fromkeys(map(headline_metric, table.kinds)))


def _absent_sentences(table: Table) -> list[str]:
    """Return how many classes the test set does not show: only the others have a metric."""
    run = table.runs[0]
    kind = "sem_seg" if "sem_seg" in run.metrics else "bbox"
    found = {metric for metric in run.metrics.get(kind, {}) if is_class_metric(metric)}
    # Classes of one name have their id in the metric's.
    found |= {re.sub(r" \(id \d+\)$", "", metric) for metric in found}
    absent = [name for name in run.classes if class_metric(name, kind) not in found]
    if not found or not absent:
        return []
    names = ", ".join(absent[:_NAMED]) + ", ..." * (len(absent) > _NAMED)
    count = f"{len(absent)} of the {len(run.classes)} classes"
    what = "labelled pixel" if kind == "sem_seg" else "object"
    return [f"{count} ({names}) have no {what} in the test set, and are left out of the means."]


def interval_sentences(table: Table) -> list[str]:
    """Return what the interval of a difference means, where the table has one."""
    if not table.intervals:
        return []
    num_images = _joined(interval.num_images for interval in table.intervals.values())
    return [
        f"95% CI: bootstrap percentiles of Δ {_judged_by(table)} over the {num_images} test images,"
        f" {NUM_SAMPLES} samples, the same images for both rows and each seed. It speaks of other"
        " test images, not of other seeds."
    ]


def comparison_sentences(table: Table) -> list[str]:
    """Return the p and the interval of each row as text, where columns have no room."""
    found = []
    for row, kind, difference in _differences(table):
        interval = table.intervals.get((row.init, kind))
        p = p_text(difference.test)
        parts = [f"95% CI {interval_text(interval, row_n=len(row.runs))}"] if interval else []
        parts += [f"p {p}"] if p != NOTHING else []
        found += [f"{row.init} {kind_name(kind)} {', '.join(parts)}"] if parts else []
    return [f"Differences in {_judged_by(table)}: {'; '.join(found)}."] if found else []


def _baseline_sentences(table: Table) -> list[str]:
    base = table.baseline
    if len(table.rows) < 2 or (base and base.init in (BASELINES[0], table.baseline_name)):
        return []
    what = f"The baseline is the {base.init} row" if base else "No differences"
    missing = f"no row with runs is called {BASELINES[0] if base else ' or '.join(BASELINES)}"
    return [f"{what}: {missing}; --baseline NAME takes another."]


def version_sentences(table: Table) -> list[str]:
    """Return every version and commit that occurs in the runs, in one sentence, or []."""
    runs = table.runs
    packages = dict.fromkeys(name for run in runs for name in run.versions)
    parts = [f"{name} {_joined(run.versions.get(name, '?') for run in runs)}" for name in packages]
    if commits := _joined(run.git[:7] for run in runs if run.git):
        parts.append(f"commit {commits}")
    return [f"Versions: {', '.join(parts)}."] if parts else []


def dagger_sentences(table: Table) -> list[str]:
    """Return one sentence per reason for a dagger, which names the row and the runs."""
    folders: dict[tuple[str, str], list[str]] = {}
    for run in table.runs:
        for caveat in run_caveats(run):
            folders.setdefault((run.init, caveat), []).append(run.folder)
    return [f"{DAGGER} row {i}: {why} in {', '.join(runs)}." for (i, why), runs in folders.items()]


def published_sentences(table: Table) -> list[str]:
    """Return protocol and sources of the published numbers, and where our schedule differs."""
    found = [(row, published_row(table, row, kind)) for row in table.rows for kind in table.kinds]
    matches = {row.init: match for row, match in found if match}
    if not matches:
        return []
    setting = next(iter(matches.values()))[0]
    by_source: dict[str, list[str]] = {}
    for init, (_, published) in matches.items():
        by_source.setdefault(published.source, []).append(f"{init} = {published.label}")
    rows = "; ".join(f"{', '.join(labels)} ({source})" for source, labels in by_source.items())
    trials = f", mean of {setting.trials} trials" if setting.trials else ""
    sentences = [f"Published, {setting.title}{trials}: {rows}."]
    if setting.std:
        std = ", ".join(f"{column.split('/')[1]} {value}" for column, value in setting.std.items())
        formula = "(our mean - published mean) / published std"
        sentences.append(f"Distance: {formula}; std {std} from {setting.std_source}.")
    sentences += [setting.note] if setting.note else []
    return [*sentences, *schedule_sentences(table.own_runs, setting)]


def schedule_sentences(runs: Sequence[RunRecord], setting: PublishedSetting) -> list[str]:
    """Return where runs are shorter or longer than the published ones, counted in images, or were
    tested on another number of images.
    """
    published = setting.iterations or 0
    lengths: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for run in runs if published else ():
        # Parsing the whole config of each run would be slow.
        match = _BATCH.search(text_of(run.folder, CONFIG_FILE))
        batch = int(match[1]) if match else 0
        gap = abs(run.iterations * batch - published * setting.batch)
        is_scaled = bool(match) and gap <= batch  # scaled schedules round their iterations
        text = f"{run.iterations} iterations" + (f" of {batch} images" if match else "")
        if run.iterations != published:
            lengths[is_scaled][text] = None
    scaled, differing = map(", ".join, lengths.values())
    length = f"{published} of {setting.batch} images"
    same = f"as many images as the published ones with {length}"
    sentences = [f"Runs here trained for {scaled}: {same}."] if scaled else []
    other = f"runs here trained for {differing}, the published ones for {length}"
    sentences += [f"Warning: {other}."] if differing else []
    sizes = {run.num_images for run in runs} - {None, setting.test_images}
    if sizes and setting.test_images:
        found = ", ".join(map(str, sizes))
        other = f"runs here were tested on {found} images, the published ones on"
        sentences.append(f"Warning: {other} {setting.test_images}.")
    return sentences
