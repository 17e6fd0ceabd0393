"""Pre-training runs: find their folders, read their metrics.json, and draw how they went.

The transfer table does not need them; the page and the plots show them beside it, so that a row's
number stands beside the loss, the kNN accuracy and the cosines of the run that made its weights.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .curves import Points, bin_means, read_series
from .html.plots import LINE, STYLES, Panel, plain_text, side_by_side
from .records import CONFIG_FILE, METRICS_FILE, RESULTS_FILE, Problem, RunRecord

#: What is drawn of a pre-training run.
COLUMNS = (
    "loss",
    "chance",
    "knn_top1",
    "cos_positive",
    "cos_negative",
    "contrast_acc1",
    "acc1",
    "feature_spread",
)
_SIZE = (4.2, 3.2)
_LINES_TO_TELL = 20  # of metrics.json: enough to tell what kind of run it is


@dataclass(frozen=True)
class PretrainingRun:
    """One pre-training run.

    Attributes:
        folder: The run folder, as the user would type it.
        mechanism: ``"moco"``, ``"supervised"``, ...; "" where its config cannot be read.
        arch: Architecture of the encoder; "" likewise.
        epochs: Epochs that its config asks for, or None.
        iterations: The last that was logged.
        series: Column of metrics.json to (iteration, value) points; loss as logged, accuracies
            0-100, cosines -1 to 1.
        inits: Rows of the tables that started from its weights, as far as the runs recorded it.
    """

    folder: str
    mechanism: str
    arch: str
    epochs: int | None
    iterations: int
    series: dict[str, Points]
    inits: tuple[str, ...]


def find_pretraining(
    paths: Iterable[str | os.PathLike[str]], records: Sequence[RunRecord] = ()
) -> tuple[list[PretrainingRun], list[Problem]]:
    """Find the pre-training runs that belong to a report.

    Args:
        paths: Folders, searched at any depth.
        records: Fine-tuning runs; the folder in which the weights of one lie is looked at too.

    Returns:
        The runs, in the order of their folders, and a problem for each damaged metrics.json.
    """
    started: dict[Path, dict[str, None]] = {}
    for run in records:
        if run.weights.get("path"):
            started.setdefault(Path(str(run.weights["path"])).parent, {})[run.init] = None
    folders = {folder.resolve(): folder for folder in [*started, *_folders_with_metrics(paths)]}
    inits: dict[Path, tuple[str, ...]] = {
        folder.resolve(): tuple(names) for folder, names in started.items()
    }
    found: dict[tuple, PretrainingRun] = {}
    problems = []
    # Those that only the weights lead to stand last: a record beside the run that it was made from
    # is shown once.
    for resolved, folder in sorted(
        folders.items(), key=lambda item: (item[1] in started, str(item[1]))
    ):
        run, problem = _read(folder, inits.get(resolved, ()))
        if run and (key := _identity(run)) not in found:
            found[key] = run
            problems += [problem] if problem else []
    return sorted(found.values(), key=lambda run: run.folder), problems


def _identity(run: PretrainingRun) -> tuple:
    return run.mechanism, run.arch, run.iterations, round(run.series["loss"][-1][1], 4)


def pretraining_panels(run: PretrainingRun) -> list[Panel]:
    """Return the loss beside chance, kNN top-1, and the mean cosines of positives and negatives:
    those that the run logged.
    """
    chance = ", and chance, ln(K+1), dotted" if "chance" in run.series else ""
    panels = [Panel("loss_curve", f"loss{chance}", _SIZE, partial(_draw_loss, run))]
    if "cos_positive" in run.series:
        caption = "mean cosine of queries with their positives and with the negatives"
        panels.append(Panel("cosine_curve", caption, _SIZE, partial(_draw_cosines, run)))
    accuracies = {
        "contrast_acc1": (
            "(K+1)-way accuracy (%)",
            "accuracy of the pretext task: the positive among K + 1 keys",
        ),
        "acc1": ("top-1 (%)", "top-1 on the training images, as the run saw them"),
        "knn_top1": ("kNN top-1 (%)", "top-1 of a kNN classifier on the features"),
    }
    for name, (label, caption) in accuracies.items():
        if name in run.series:
            panels.append(
                Panel(f"{name}_curve", caption, _SIZE, partial(_draw_accuracy, run, name, label))
            )
    return panels


def pretraining_curves(run: PretrainingRun) -> Figure:
    """Draw :func:`pretraining_panels` side by side."""
    figure, _ = side_by_side(pretraining_panels(run), height=3.4)
    figure.suptitle(
        plain_text(", ".join(filter(None, (run.mechanism, run.arch, run.folder)))), fontsize=10
    )
    return figure


def _folders_with_metrics(paths: Iterable[str | os.PathLike[str]]) -> Iterable[Path]:
    for path in paths:
        for root, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if (
                METRICS_FILE in files and RESULTS_FILE not in files
            ):  # a test of features has results and a metrics.json too
                yield Path(root)


def _read(folder: Path, inits: tuple[str, ...]) -> tuple[PretrainingRun | None, Problem | None]:
    file = folder / METRICS_FILE
    if not file.is_file() or not _is_pretraining(file):
        return None, None
    series, problem = read_series(file, COLUMNS)
    if "loss" not in series:
        return None, problem
    config = _config(folder)
    solver, model = (
        config.get(key) if isinstance(config.get(key), dict) else {} for key in ("SOLVER", "MODEL")
    )
    run = PretrainingRun(
        folder=str(folder),
        mechanism=str(config.get("MECHANISM") or ""),
        arch=str(model.get("ARCH") or ""),
        epochs=solver.get("EPOCHS"),
        iterations=int(series["loss"][-1][0]),
        series=series,
        inits=inits,
    )
    return run, problem


def _is_pretraining(file: Path) -> bool:
    # A detector logs total_loss; pre-training logs loss with one of these accuracies, between lines
    # of the kNN monitor.
    try:
        with open(file, encoding="utf-8") as lines:
            return any(map(_is_of_pretraining, itertools.islice(lines, _LINES_TO_TELL)))
    except (OSError, UnicodeDecodeError):
        return False


def _is_of_pretraining(line: str) -> bool:
    try:
        row = json.loads(line)
        return "loss" in row and not row.keys().isdisjoint(("contrast_acc1", "acc1"))
    except (ValueError, TypeError, AttributeError):
        return False  # damaged, or no table


def _config(folder: Path) -> dict:
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _plot(axis: Axes, points: Points, style: int, *, label: str | None = None) -> None:
    color, line_style, marker = STYLES[style]
    points = bin_means(points, end=points[-1][0])
    every = max(1, len(points) // 8)
    iterations, values = zip(*points, strict=True)
    axis.plot(
        iterations,
        values,
        color=color,
        linestyle=line_style,
        marker=marker,
        markevery=every,
        **LINE,
        label=label,
    )


def _draw_loss(run: PretrainingRun, axis: Axes) -> list[Problem]:
    _plot(axis, run.series["loss"], 2)
    if "chance" in run.series:
        axis.axhline(run.series["chance"][-1][1], color=STYLES[0][0], linestyle=":", linewidth=1.7)
    axis.set_ylabel("loss")
    return []


def _draw_accuracy(run: PretrainingRun, name: str, label: str, axis: Axes) -> list[Problem]:
    _plot(axis, run.series[name], 2)
    axis.set_ylabel(label)
    axis.set_ylim(0, max(1.0, 1.08 * axis.dataLim.y1))
    return []


def _draw_cosines(run: PretrainingRun, axis: Axes) -> list[Problem]:
    _plot(axis, run.series["cos_positive"], 2, label="positives")
    if "cos_negative" in run.series:
        _plot(axis, run.series["cos_negative"], 1, label="negatives")
    axis.set_ylabel("mean cosine")
    axis.set_ylim(min(0.0, axis.dataLim.y0), 1.0)
    axis.legend(frameon=False, fontsize=9)
    return []
