r"""The LaTeX tables: their text, and that pdflatex takes them.

Seen red under: `_` not escaped; two hyphens left to become a dash; colour without looking at the
    spread; the warnings of a
table printed in the paper instead of as comments; the distance beside the published values, which
does not fit the page.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from moco_transfer.report import build_tables, read_runs, render_latex
from moco_transfer.report.table_latex import escape_latex


def _latex(folder):
    records, problems = read_runs([folder])
    return render_latex(build_tables(records), problems)


def test_render_latex__rows_as_in_the_paper(three_rows):
    lines = _latex(three_rows).splitlines()
    assert r"init & AP & AP$_{50}$ & AP$_{75}$ & $n$ \\" in lines
    assert r"supervised & 53.7\,$\pm$\,0.8 & 73.7\,$\pm$\,0.8 & 58.7\,$\pm$\,0.8 & 3 \\" in lines
    gap = r"\textcolor{green!50!black}{($+$2.5)}"
    assert (
        rf"moco & 56.2\,$\pm$\,1.3 {gap} & 76.2\,$\pm$\,1.3 {gap} & 61.2\,$\pm$\,1.3 {gap} & 3 \\"
        in lines
    )
    assert any(r"\caption{pascal\_voc\_R\_18\_FPN: " in line for line in lines)


def test_render_latex__no_colour_within_the_spread_or_at_one_run(make_run, tmp_path):
    make_run("s", "supervised", bbox={"AP": 50.0, "AP50": 50.0, "AP75": 50.0})
    make_run("m", "moco", bbox={"AP": 60.0, "AP50": 49.0, "AP75": 50.0})
    text = _latex(tmp_path)
    assert r"moco & 60.0 ($+$10.0) & 49.0 ($-$1.0) & 50.0 (0.0) & 1 \\" in text
    assert "textcolor" not in text


def test_render_latex__published_column_and_masks(make_run, tmp_path):
    metrics = {
        "bbox": {"AP": 38.0, "AP50": 58.0, "AP75": 41.0, "APs": 20.0},
        "segm": {"AP": 35.0, "AP50": 55.0, "AP75": 37.0},
    }
    make_run(
        "m",
        "moco",
        metrics=metrics,
        task="coco_R_50_FPN_1x",
        dataset={"train": [], "test": ["coco_2017_val"]},
    )
    lines = _latex(tmp_path).splitlines()
    assert r"moco & 38.0 & 58.0 & 41.0 & 38.5/58.9/42.0 & 1 \\" in lines
    assert r"moco & 35.0 & 55.0 & 37.0 & 35.1/55.9/37.7 & 1 \\" in lines
    assert (
        r"init & AP$^\mathrm{mk}$ & AP$^\mathrm{mk}_{50}$ & AP$^\mathrm{mk}_{75}$ & published &"
        r" $n$ \\" in lines
    )


def test_render_latex__distance_in_published_std_below_the_published_values(make_run, tmp_path):
    bbox = {
        "AP": 56.1,
        "AP50": 81.3,
        "AP75": 62.6,
    }  # published 55.9, 81.5, 62.6 with std 0.2, 0.2, 0.4
    make_run(
        "m",
        "moco",
        bbox=bbox,
        task="pascal_voc_R_50_C4_24k",
        dataset={"train": [], "test": ["voc_2007_test"]},
    )
    text = _latex(tmp_path)
    cell = r"\begin{tabular}{@{}c@{}}55.9/81.5/62.6\\\scriptsize ($+$1.0/$-$1.0/0.0)\end{tabular}"
    assert rf"moco & 56.1 & 81.3 & 62.6 & {cell} & 1 \\" in text.splitlines()
    assert "It is in brackets below the published values." in text


def test_render_latex__warnings_are_comments(make_run, tmp_path):
    make_run("a", "moco", 0)
    make_run("b", "moco", 0)
    make_run("c", "random", 0, schema=3)
    comments = [line for line in _latex(tmp_path).splitlines() if line.startswith("% Warning: ")]
    assert "2 runs claim seed 0" in comments[0]
    assert "has schema 3, expected 1" in comments[1]


def test_escape_latex__every_special_character():
    assert (
        escape_latex("a_b&50%$#{}~^\\<>|")
        == r"a\_b\&50\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}"
        r"\textgreater{}\textbar{}"
    )
    assert escape_latex("--allow-partial\n†") == r"-{}-allow-partial $\dagger$"


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("pdflatex") is None,
    reason="pdflatex is not installed (Debian: texlive-latex-recommended)",
)
def test_render_latex__compiles_and_fits_the_page(three_rows, make_run):
    nasty = r"m_o&c%o$#{}~^\|<>"
    for seed in range(3):
        weights = {"path": "m.pkl", "coverage": {"missing": ["res2"]}}
        make_run(
            f"n{seed}",
            nasty,
            seed,
            weights=weights,
            flags={"allow_partial": True, "forced": ["pixel_mean"]},
        )
    for init, base in {"random": 30.0, "supervised": 38.9, "moco": 38.5}.items():
        for seed in range(2):
            bbox = {
                "AP": base + seed,
                "AP50": base + 20 + seed,
                "AP75": base + 4 + seed,
                "APs": 10.0,
            }
            metrics = {"bbox": bbox, "segm": {metric: value - 4 for metric, value in bbox.items()}}
            dataset = {"train": ["coco_2017_train"], "test": ["coco_2017_val"]}
            make_run(
                f"{init}{seed}",
                init,
                seed,
                metrics=metrics,
                task="coco_R_50_FPN_1x",
                dataset=dataset,
            )
    for init, base in {"random": 33.8, "supervised": 53.5, "moco_v2_200ep": 57.0}.items():
        for seed in range(3):
            bbox = {"AP": base + seed / 10, "AP50": base + 25, "AP75": base + 7 + seed / 5}
            dataset = {"train": ["voc_2007_trainval"], "test": ["voc_2007_test"]}
            make_run(
                f"voc_{init}{seed}",
                init,
                seed,
                bbox=bbox,
                task="pascal_voc_R_50_C4_24k",
                dataset=dataset,
            )
    for init in ("random", "supervised", "moco_v2_200ep"):
        for seed in range(3):
            numbers = {
                "AP": 24.1,
                "AP50": 37.4,
                "AP75": 25.5,
                "APr": 11.1,
                "APc": 23.3,
                "APf": 30.3,
            }
            of_seed = {name: value + seed / 5 + len(init) for name, value in numbers.items()}
            make_run(
                f"lvis_{init}{seed}",
                init,
                seed,
                metrics={"bbox": of_seed, "segm": of_seed},
                task="lvis_v0.5_R_50_FPN_2x",
                dataset={"train": ["lvis_v0.5_train"], "test": ["lvis_v0.5_val"]},
            )
    (three_rows / "table.tex").write_text(_latex(three_rows), encoding="utf-8")
    (three_rows / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\usepackage{xcolor}\begin{document}\input{table.tex}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=three_rows, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Output written on paper.pdf" in done.stdout
    overfull = [
        float(line.split("(")[1].split("pt")[0])
        for line in done.stdout.splitlines()
        if line.startswith("Overfull")
    ]
    assert max(overfull, default=0.0) < 10
