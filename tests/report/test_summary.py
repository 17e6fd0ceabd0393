"""Initialisations over many tasks: ranks, wins, differences and tests.

Numbers are of scipy 1.17.1 (rankdata, friedmanchisquare, f.sf, wilcoxon with its exact permutation
distribution, binomtest, t.interval) or worked out in comments.

Seen red under: rank 1 for the lowest; Friedman's correction for ties left out; F with N - 1
    for (k - 1)(N - 1); Wilcoxon's ranks of signed values; one-sided p; Holm without the running
    maximum; the tables of two label amounts in one summary; a task that lacks a row ranked.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re

import pytest
from test_cli_report import _run

from moco_transfer.report.comparisons.rank_statistics import (
    friedman,
    holm,
    ranks_of,
    sign_test,
    t_interval,
    wilcoxon,
)
from moco_transfer.report.seed_statistics import f_tail
from moco_transfer.runtime.errors import InputError

#: Four tasks, three seeds: random, supervised, moco. Means, by hand: a 10 20 22; b 12 30 29;
#: c 50 40 60; d 33 33.5 33.5.
SCORES = {
    "a": {"random": (9, 10, 11), "supervised": (19, 20, 21), "moco": (21, 22, 23)},
    "b": {"random": (12, 12, 12), "supervised": (29, 30, 31), "moco": (27, 29, 31)},
    "c": {"random": (50, 50, 50), "supervised": (40, 41, 39), "moco": (59, 60, 61)},
    "d": {"random": (32, 33, 34), "supervised": (33, 33.5, 34), "moco": (33, 33.5, 34)},
}


@pytest.fixture
def four_tasks(make_run, tmp_path):
    for task, rows in SCORES.items():
        for init, values in rows.items():
            for seed, value in enumerate(values):
                dataset = {"train": [f"{task}_train"], "test": [f"{task}_test"]}
                bbox = {"AP": float(value), "AP50": 80.0}
                make_run(f"{task}_{init}_{seed}", init, seed, task=task, bbox=bbox, dataset=dataset)
    return tmp_path


def lines(text: str) -> dict[str, dict[str, str]]:
    """Return the CSV of a summary by row."""
    return {row["init"]: row for row in csv.DictReader(io.StringIO(text))}


def test_summary__numbers_by_hand(four_tasks, capsys):
    assert _run(four_tasks, "--summary", "--format", "csv") == 0
    rows = lines(capsys.readouterr().out)
    # Ranks: a 3 2 1; b 3 1 2; c 2 3 1; d 3 1.5 1.5.
    assert [float(rows[i]["mean_rank"]) for i in rows] == [2.75, 1.875, 1.375]
    assert [int(rows[i]["num_best"]) for i in rows] == [0, 1, 2]
    moco = rows["moco"]
    # Differences to supervised: 2, -1, 20, 0; mean 5.25.
    counts = [moco[key] for key in ("wins", "ties", "losses", "clear_wins", "clear_losses")]
    # By seed: a 2 2 2, b -2 -1 0 (mean -1, half width 4.303 / sqrt 3), c 19 19 22.
    assert counts == ["2", "1", "1", "2", "0"]
    assert float(moco["difference"]) == pytest.approx(5.25, abs=1e-12)
    # scipy.stats.t.interval(.95, 3, 5.25, sem([2, -1, 20, 0]))
    expected = (-10.522384971453016, 21.022384971453015)
    assert (float(moco["low"]), float(moco["high"])) == pytest.approx(expected, abs=1e-6)
    # Wilcoxon's ranks of 2, -1, 20: the negative one is 1 of 6, and 2 of the 8 choices of signs
    # give a sum of at most 1: p 2 x 2 / 8. Random: -10, -18, 10, -0.5 have ranks 2.5 4 2.5 1; the
    # positive one is 2.5, and 4 of 16 choices give at most that: p 2 x 4 / 16. Holm doubles.
    ps = [float(rows[init]["p_wilcoxon"]) for init in ("random", "moco")]
    assert ps == pytest.approx([1.0, 1.0])
    assert float(moco["p_sign"]) == 1.0 and rows["supervised"]["difference"] == ""


def test_summary__text_and_page(four_tasks, capsys):
    assert _run(four_tasks, "--summary") == 0
    text = capsys.readouterr().out
    assert "| moco | 1.38 | 2 of 4 | 2 / 1 / 1 | 2 / 0 | +5.2 | -10.5 to +21.0 |" in text
    # scipy: chi square 4.1333 of friedmanchisquare, F 3 x 4.1333 / (8 - 4.1333), f.sf(F, 2, 6)
    assert "F 3.21, p 0.11" in text and "below 0.125" in text
    assert "| 60.0 ± 1.0 | **+20.0 (+15.7 to +24.3)** |" in text
    assert _run(four_tasks, "--summary", "--format", "latex") == 0
    latex = capsys.readouterr().out
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    assert _run(four_tasks, "--format", "html", "--output", four_tasks / "page.html") == 0
    page = (four_tasks / "page.html").read_text()
    section = page[page.index('id="summary"') : page.index('id="table-1"')]
    assert "1.38" in section and "+5.2" in section and section.count("<table") == 2
    with pytest.raises(InputError, match="--summary"):
        _run(four_tasks, "--summary", "--format", "html")


def test_summary__missing_cells_and_amounts_of_labels(four_tasks, make_run, capsys):
    subset = {"fraction": 0.1, "seed": 0, "pictures": 3, "sha256": "5" * 64}
    for task in "ab":
        sets = {"train": ["t"], "test": [f"{task}_test"], "label_subset": subset}
        for init in ("random", "moco"):
            make_run(f"{task}_10_{init}", init, 0, task=f"{task}_10pct", dataset=sets)
    for folder in four_tasks.glob("c_moco_*"):
        (folder / "results.json").unlink()
    for seed in range(3):  # a second table of d
        sets = {"train": ["d_train"], "test": ["d_test"]}
        make_run(f"d2_{seed}", "moco", seed, task="d", config_hash="other", dataset=sets)
    assert _run(four_tasks, "--summary") == 0
    text = capsys.readouterr().out
    titles = sorted(re.findall("### Summary: (.*)", text))
    assert titles == ["2 tasks (10% labels, torchvision)", "3 tasks (all labels, torchvision)"]
    whole = text[text.index("3 tasks (all labels") :]
    assert "| moco | 1.50 | 1 of 2 | 1 / 0 / 1 |" in whole  # a and b
    assert "| random | 3.00 | 0 of 2 | 1 / 0 / 2 |" in whole  # its differences are of a, b, c
    assert "c: has no run of moco" in whole and "d: has 2 tables" in whole
    assert "| c | boxes AP | 50.0 ± 0.0 |" in whole


def test_summary__has_no_detections_of_other_programs(four_tasks, make_run, capsys):
    assert _run(four_tasks, "--summary") == 0
    without = capsys.readouterr().out
    record = json.loads(next(four_tasks.rglob("results.json")).read_text())
    foreign = {"engine": "other", "config_hash": "", "norm": "unknown", "init": "yolo"}
    make_run("yolo", **record | foreign | {"predictions": {"path": "yolo.json"}})
    assert _run(four_tasks) == 0 and "| yolo†" in capsys.readouterr().out
    assert _run(four_tasks, "--summary") == 0
    assert capsys.readouterr().out == without


def test_summary__of_one_task_says_why_there_is_none(three_rows, capsys):
    assert _run(three_rows, "--summary") == 0
    assert "two tasks or more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("f", "df1", "df2", "p"),
    [
        (0.3, 2, 6, 0.7513148009015778),
        (4.0, 3, 9, 0.045983998201514005),
        (10.0, 4, 30, 2.8928437923539454e-05),
        (2.5, 3, 297, 0.059668807573348255),
    ],
)
def test_f_tail__equals_scipy(f, df1, df2, p):
    assert f_tail(f, df1, df2) == pytest.approx(p, rel=1e-9)


def test_rank_statistics__equal_scipy():
    scores = [[3.0, 1.0, 1.0, 0.0], [2.0, 2.0, 1.0, 5.0], [4.0, 3.0, 2.0, 1.0]]
    ranks = [ranks_of(row) for row in scores]
    assert ranks == [[1, 2.5, 2.5, 4], [2.5, 2.5, 4, 1], [1, 2, 3, 4]]
    assert friedman(ranks).chi_square == pytest.approx(3.321428571428573, rel=1e-12)
    assert friedman([[1, 2, 3]] * 4).p == 0 and friedman([[2, 2, 2]] * 4).p == 1
    assert friedman([[1, 2]] * 4) is None
    values = [1.5, -0.2, 0.7, 0.7, 2.2, -0.9, 0.0, 3.1]
    assert wilcoxon(values) == pytest.approx(0.15625, rel=1e-12)
    assert wilcoxon([float(i) for i in range(1, 11)]) == 2 / 1024
    assert sign_test(9, 1) == pytest.approx(0.021484375) and sign_test(3, 3) == 1
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    low, high = t_interval([1.0, 2.0, 4.0])
    assert (low, high) == pytest.approx(
        (-1.461249700263426, 6.1279163669300925), rel=1e-9
    ) and t_interval([1.0]) is None
    assert math.isclose((low + high) / 2, 7 / 3)
