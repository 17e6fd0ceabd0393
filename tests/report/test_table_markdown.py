"""The Markdown tables, as text.

Seen red under: the case n = 1 dropped; `n` with the conflicts counted; a cell's own n not shown;
    "+0.0"; the dagger dropped,
or set for random weights or complete ones; bold without looking at the spread; problems of files
not printed; `|` not escaped; masks without sizes taken for VOC; text outside the markers changed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from moco_transfer.report import build_tables, fill_sections, read_runs, render_markdown
from moco_transfer.runtime.errors import InputError


def _markdown(folder):
    records, problems = read_runs([folder])
    return render_markdown(build_tables(records), problems)


def _grid(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_render_markdown__golden(three_rows):
    assert (
        _markdown(three_rows)
        == "### pascal_voc_R_18_FPN\n\nTrained on voc_2007_trainval, tested on voc_2007_test;"
        " engine torchvision, norm BN, 100 iterations, 1 process, config 01234567.\n\n| init |"
        " AP | AP50 | AP75 | Δ AP | Δ AP50 | Δ AP75 | p (AP) | n | engine |\n| --- | --- | --- |"
        " --- | --- | --- | --- | --- | --- | --- |\n| random | 34.0 ± 1.0 | 54.0 ± 1.0 | 39.0 ±"
        " 1.0 | **-19.7** | **-19.7** | **-19.7** | <0.001 (n=3) | 3 | torchvision |\n|"
        " supervised | 53.7 ± 0.8 | 73.7 ± 0.8 | 58.7 ± 0.8 | – | – | – | – | 3 | torchvision"
        " |\n| moco | 56.2 ± 1.3 | 76.2 ± 1.3 | 61.2 ± 1.3 | **+2.5** | **+2.5** | **+2.5** |"
        " 0.013 (n=3) | 3 | torchvision |\n\n- AP as Detectron2 evaluates VOC: mean over IoU"
        " .50:.05:.95, 11 recall points on VOC 2007 and the area under the curve on other sets,"
        " difficult objects ignored; AP50 and AP75 at one IoU. Mean ± sample std (n - 1) over n"
        " seeds; n = 1 has no ±.\n- Δ: difference of the means to the supervised row; bold where"
        " it exceeds the std of both rows.\n- p: two-sided paired t test against the supervised"
        " row over the seeds that both rows have.\n- Versions: torch 2.11.0, commit abcdef1.\n"
    )


def test_render_markdown__names_classes_that_the_test_set_lacks(make_run, tmp_path):
    classes = ["cat", "catfish", "dog", "dog"]
    found = {"AP": 50.0, "AP50": 1.0, "AP75": 1.0, "AP-catfish": 40.0, "AP-dog (id 3)": 60.0}
    dataset = {"train": ["voc_2007_trainval"], "test": ["voc_2007_test"], "classes": classes}
    make_run("s", "supervised", bbox=found, dataset=dataset)
    assert "- 1 of the 4 classes (cat) have no object in the test set" in _markdown(tmp_path)
    make_run("t", "other", bbox=found | {"AP-cat": 0.0}, dataset=dataset | {"test": ["mine"]})
    assert _markdown(tmp_path / "t").count("classes") == 0


def test_render_markdown__one_run_has_no_spread_and_no_bold(make_run, tmp_path):
    make_run("s", "supervised", bbox={"AP": 50.04, "AP50": 1.0, "AP75": 1.0})
    make_run("m", "moco", bbox={"AP": 50.0, "AP50": 2.0, "AP75": 0.0})
    text = _markdown(tmp_path)
    assert "| moco | 50.0 | 2.0 | 0.0 | 0.0 | +1.0 | -1.0 | 1 | torchvision |" in _grid(text)
    assert "**" not in text


def test_render_markdown__says_why_tables_are_apart(make_run, tmp_path):
    make_run("a", engine="detectron2", norm="SyncBN")
    make_run("b", seed=1)
    text = _markdown(tmp_path)
    assert text.startswith(
        "- pascal_voc_R_18_FPN: 2 tables, because its runs differ in engine (detectron2,"
        " torchvision) and norm (BN, SyncBN); such runs are never averaged.\n"
    )
    assert len([line for line in _grid(text) if line.startswith("| moco")]) == 2


def test_render_markdown__marks_and_explains_partial_and_forced_runs(make_run, tmp_path):
    weights = {
        "path": "moco.pkl",
        "coverage": {"missing": ["res2.0.conv1.weight", "res2.0.conv2.weight"]},
    }
    make_run("a", "moco", 0, weights=weights, flags={"allow_partial": True, "forced": []})
    make_run("b", "other", 0, flags={"allow_partial": False, "forced": ["norm"]})
    make_run("c", "supervised", 0)
    text = _markdown(tmp_path)
    assert [line.split(" | ")[0] for line in _grid(text)[2:]] == [
        "| supervised",
        "| moco†",
        "| other†",
    ]
    assert (
        "- † row moco: started from partly covered weights (2 backbone tensors stayed random) in"
        f" {tmp_path / 'a'}." in text
    )
    assert f"- † row other: overruled a check of the config (norm) in {tmp_path / 'b'}." in text


def test_render_markdown__no_dagger_where_nothing_stayed_random(make_run, tmp_path):
    flags = {"allow_partial": True, "forced": []}
    make_run(
        "r",
        "random",
        weights={"path": "", "sha256": None, "stamp": None, "coverage": None},
        flags=flags,
    )
    complete = {"expected": 265, "matched": 265, "missing": [], "unused": [], "misshapen": []}
    make_run("s", "supervised", weights={"path": "s.pkl", "coverage": complete}, flags=flags)
    assert "†" not in _markdown(tmp_path)
    make_run(
        "m",
        "moco",
        weights={"path": "m.pkl", "coverage": complete | {"misshapen": ["stem.conv1.weight"]}},
        flags=flags,
    )
    assert (
        "† row moco: started from partly covered weights (1 backbone tensors stayed random)"
        in _markdown(tmp_path)
    )


def test_render_markdown__masks_are_evaluated_as_coco(make_run, tmp_path):
    make_run("m", metrics={"segm": {"AP": 35.1, "AP50": 55.9, "AP75": 37.7}})
    assert "AP by COCO's rules: mean over IoU" in _markdown(tmp_path)


def test_render_markdown__names_what_is_missing_and_shows_the_rest(make_run, tmp_path):
    make_run("a", "moco", 0)
    make_run("b", "moco", 0)
    make_run("c", "moco", 1, bbox={"AP": float("nan"), "AP50": 7.0, "AP75": 3.0})
    make_run("d", "random", 0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/results.json").write_text('{"schema": 1, "task": ')
    text = _markdown(tmp_path)
    assert "| moco | – | 7.0 | 3.0 | – | -73.0 | -52.0 | 1 | torchvision |" in _grid(text)
    assert "**Warning:** row moco: 2 runs claim seed 0" in text
    assert f"**Warning:** row moco: no finite bbox AP in {tmp_path / 'c'}" in text
    assert "**Warning:** row random: no run with seed 1" in text
    assert f"**Warning:** {tmp_path / 'broken' / 'results.json'}: is no valid JSON" in text


def test_render_markdown__a_cell_with_fewer_runs_says_so(make_run, tmp_path):
    for seed, value in enumerate([40.0, 42.0, float("nan")]):
        make_run(f"m{seed}", "moco", seed, bbox={"AP": value, "AP50": 70.0, "AP75": 30.0})
    assert "| moco | 41.0 ± 1.4 (n=2) | 70.0 ± 0.0 | 30.0 ± 0.0 | 3 | torchvision |" in _grid(
        _markdown(tmp_path)
    )


def test_render_markdown__boxes_and_masks_and_pretraining(make_run, tmp_path):
    metrics = {
        "bbox": {"AP": 38.5, "AP50": 58.9, "AP75": 42.0, "APs": 20.0},
        "segm": {"AP": 35.1, "AP50": 55.9, "AP75": 37.7},
    }
    make_run(
        "m",
        "moco|v1",
        metrics=metrics,
        weights={"path": "m.pkl", "stamp": {"mechanism": "moco", "epoch": 200}},
    )
    text = _markdown(tmp_path)
    assert "**Boxes**" in text and "**Masks**" in text
    assert "| moco\\|v1 | moco, epoch 200 | 35.1 | 55.9 | 37.7 | 1 | torchvision |" in _grid(text)
    assert "AP by COCO's rules: mean over IoU" in text


def test_fill_sections__changes_nothing_outside():
    begin, end = "<!-- results:begin a b -->", "<!-- results:end -->"
    text = f"# Title\n{begin}\nold\n{end}\ntail\n"
    once = fill_sections(text, lambda paths: f"| {paths} |\n")
    assert once == f"# Title\n{begin}\n\n| {('a', 'b')} |\n\n{end}\ntail\n"
    assert fill_sections(once, lambda paths: f"| {paths} |\n") == once


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no markers", (0, 0, 0)),
        ("<!-- results:begin a -->", (1, 0, 0)),
        ("<!-- results:begin --><!-- results:end -->", (1, 1, 0)),
        ("<!-- results:end --><!-- results:begin a -->", (1, 1, 0)),
        ("<!-- results:begin a --><!-- results:begin b --><!-- results:end -->", (2, 1, 1)),
        ("<!-- results:begin a -->" * 2 + "<!-- results:end -->" * 2, (2, 2, 1)),
    ],
)
def test_fill_sections__refuses(text, found):
    with pytest.raises(InputError, match="found {} and {} in {} sections".format(*found)):
        fill_sections(text, lambda paths: "x")


def test_report__imports_no_torch():
    code = (
        "import sys, moco_transfer.report, moco_transfer.cli.report;"
        "print([name for name in ('torch', 'torchvision', 'detectron2') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
