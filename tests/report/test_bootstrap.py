"""The interval of an AP difference over test images: against a plain bootstrap that draws the
images and computes AP in loops, and its coverage of a known difference.

tests/evaluate/test_resampled_ap.py holds AP on drawn images against pycocotools.
Seen red under: other images for the baseline than for the row; seeds paired by their place;
standard errors for percentiles; another generator seed; a run's own order of images; a file of
other detections taken; a problem for a record without a file.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from match_files import draw_images, draw_matches, plain_ap

from moco_transfer.report import bootstrap, build_tables, read_runs, render_latex, render_markdown
from moco_transfer.report.bootstrap import with_intervals
from moco_transfer.report.html.page import render_page
from moco_transfer.report.keep import keep_records


@pytest.fixture
def make_matched(make_run):
    """Return a function that writes a run with a file of matches and AP from it."""

    def make(name, init, seed, found, **changes):
        bbox = changes.pop("bbox", None)
        if bbox is None:
            bbox = dict.fromkeys(("AP", "AP50", "AP75", "APs"), plain_ap(found))
        matches = {"voc_2007_test": "matches_voc_2007_test.npz"}
        folder = make_run(name, init, seed, bbox=bbox, matches=matches, **changes)
        np.savez_compressed(folder / "matches_voc_2007_test.npz", **found)
        return folder

    return make


def _tables(folder):
    return with_intervals(build_tables(read_runs([folder])[0]))


@pytest.fixture
def two_rows(make_matched, tmp_path):
    """Write seeds 0 to 2 of supervised, 1 to 3 of moco; return their files by row and seed."""
    rng = np.random.default_rng(0)
    images = draw_images(rng, 25)
    files = {}
    for init, seeds, skill in (("supervised", (0, 1, 2), 0.8), ("moco", (1, 2, 3), 1.0)):
        for seed in seeds:
            files[init, seed] = draw_matches(rng, images, skill=skill)
            make_matched(f"{init}{seed}", init, seed, files[init, seed])
    return files


def test_interval__is_that_of_a_plain_bootstrap(two_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "NUM_SAMPLES", 60)
    (table,) = _tables(tmp_path)
    assert table.problems[-1:] != () and "matches" not in str(table.problems)
    random = np.random.RandomState(0)
    gaps = []
    for _ in range(60):
        drawn = random.randint(0, 25, 25)
        ap = {key: plain_ap(found, drawn) for key, found in two_rows.items()}
        gaps.append(np.mean([ap["moco", seed] - ap["supervised", seed] for seed in (1, 2)]))
    interval = table.intervals["moco", "bbox"]
    expected = np.percentile(gaps, [2.5, 97.5]).tolist()
    # Each AP is kept to 4 decimals.
    assert [interval.low, interval.high] == pytest.approx(expected, abs=1e-4)
    assert (interval.n, interval.num_images, len(table.intervals)) == (2, 25, 1)
    assert _tables(tmp_path)[0].intervals == table.intervals


def test_interval__of_files_with_another_order_of_images(two_rows, make_matched, tmp_path):
    before = _tables(tmp_path)[0].intervals
    found = dict(two_rows["moco", 1])
    order = np.random.default_rng(1).permutation(25)
    found["image_ids"] = found["image_ids"][order]
    place = np.argsort(order)
    found["bbox/image"] = place[found["bbox/image"]].astype(np.int32)
    found["bbox/truth"] = found["bbox/truth"].copy()
    found["bbox/truth"][:, 0] = place[found["bbox/truth"][:, 0]]
    (tmp_path / "moco1/matches_voc_2007_test_bootstrap.json").unlink()
    np.savez_compressed(tmp_path / "moco1/matches_voc_2007_test.npz", **found)
    assert _tables(tmp_path)[0].intervals == before


def test_formats__show_the_interval(two_rows, tmp_path):
    tables = _tables(tmp_path)
    interval = tables[0].intervals["moco", "bbox"]
    text = f"{interval.low:+.1f} to {interval.high:+.1f} (n=2)"
    markdown = render_markdown(tables)
    header, row = (
        [cell.strip() for cell in line.split("|")]
        for line in markdown.splitlines()
        if line.startswith(("| init", "| moco"))
    )
    assert row[header.index("95% CI (AP)")] == text
    assert "over the 25 test images, 1000 samples" in markdown
    assert f"95% interval over the test images {text}" in render_page(tables)
    assert f"moco boxes 95\\% CI {text}" in render_latex(tables)
    plain = render_markdown(build_tables(read_runs([tmp_path])[0]))
    assert "95% CI" not in plain and "95% CI" not in render_latex(build_tables([]))


def test_interval__of_one_seed(make_matched, tmp_path):
    rng = np.random.default_rng(4)
    images = draw_images(rng, 30)
    for init, skill in (("random", 0.5), ("moco", 1.1)):
        make_matched(init, init, 0, draw_matches(rng, images, skill=skill))
    (table,) = _tables(tmp_path)
    interval = table.intervals["moco", "bbox"]
    gap = table.difference(table.rows[1], "bbox", "AP").value
    assert 0 < interval.low < gap < interval.high and interval.n == 1


def _ap(found):
    """AP as plain_ap, by the code under test: many files take it seconds instead of minutes."""
    of_boxes = {name.split("/")[1]: array for name, array in found.items() if "/" in name}
    num_images = len(found["image_ids"])
    ranking = bootstrap.Ranking(of_boxes, np.arange(num_images), "coco")
    return ranking.aps(np.ones((num_images, 1), np.int32))[0]


def test_interval__covers_a_known_difference(make_matched, tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "NUM_SAMPLES", 200)
    rng = np.random.default_rng(7)
    population = draw_images(rng, 20_000)
    skills = {"supervised": 0.85, "moco": 0.95}
    ap = {init: _ap(draw_matches(rng, population, skill=s)) for init, s in skills.items()}
    for repeat in range(80):
        images = draw_images(rng, 100)
        for init, skill in skills.items():
            found = draw_matches(rng, images, skill=skill)
            of_table = {"bbox": {"AP": _ap(found)}, "config_hash": f"{repeat:016d}"}
            make_matched(f"{repeat}/{init}", init, 0, found, **of_table)
    intervals = [table.intervals["moco", "bbox"] for table in _tables(tmp_path)]
    difference = ap["moco"] - ap["supervised"]
    covered = sum(interval.low < difference < interval.high for interval in intervals)
    assert len(intervals) == 80 and 0.9 <= covered / 80 < 1


@pytest.mark.parametrize("damage", ["garbage", "cut", "arrays", "order", "image", "pickle"])
def test_damaged_file__is_named_and_left_out(two_rows, tmp_path, damage):
    file = tmp_path / "moco1/matches_voc_2007_test.npz"
    found = dict(two_rows["moco", 1])
    if damage == "garbage":
        file.write_bytes(b"no zip")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif damage == "arrays":
        del found["bbox/truth"]
    elif damage == "order":
        found["bbox/class"] = found["bbox/class"][::-1]
    elif damage == "image":
        found["bbox/image"] = found["bbox/image"] + 20
    else:
        found["bbox/hit"] = np.array([{}], object)
    if damage not in ("garbage", "cut"):
        np.savez(file, **found)
    (table,) = _tables(tmp_path)
    named = [problem for problem in table.problems if problem.path == str(file)]
    assert len(named) == 1
    assert table.intervals["moco", "bbox"].n == 1, "seed 2 is left"


def test_file_of_other_detections__is_left_out(two_rows, tmp_path):
    ap = plain_ap(two_rows["moco", 1])
    np.savez(tmp_path / "moco1/matches_voc_2007_test.npz", **two_rows["moco", 2])
    (table,) = _tables(tmp_path)
    (problem,) = [problem for problem in table.problems if problem.path.endswith("npz")]
    assert f"results.json has {ap}" in str(problem)
    assert table.intervals["moco", "bbox"].n == 1


def test_other_test_images__have_no_interval(make_matched, tmp_path):
    rng = np.random.default_rng(2)
    make_matched("s", "supervised", 0, draw_matches(rng, draw_images(rng, 9), skill=1.0))
    make_matched("m", "moco", 0, draw_matches(rng, draw_images(rng, 8), skill=1.0))
    (table,) = _tables(tmp_path)
    assert not table.intervals
    assert "row moco: " in str(table.problems[-1]) and "different images" in str(table.problems[-1])


def test_runs_without_a_file__are_as_before(two_rows, tmp_path):
    for file in tmp_path.glob("*/*.npz"):
        file.unlink()
    (table,) = _tables(tmp_path)
    assert not table.intervals
    assert table.problems == build_tables(read_runs([tmp_path])[0])[0].problems


def test_second_report__takes_what_the_first_computed(two_rows, tmp_path, monkeypatch):
    first = _tables(tmp_path)[0].intervals
    names = ["matches_voc_2007_test.npz", "matches_voc_2007_test_bootstrap.json", "results.json"]
    assert sorted(file.name for file in (tmp_path / "moco1").iterdir()) == names
    computed = []
    compute = bootstrap._compute
    monkeypatch.setattr(bootstrap, "_compute", lambda *a: computed.append(a) or compute(*a))
    assert _tables(tmp_path)[0].intervals == first and not computed
    # An evaluation again, with other detections: what was kept is not of this run.
    other = two_rows["supervised", 0]
    np.savez(tmp_path / "moco1/matches_voc_2007_test.npz", **other)
    results = tmp_path / "moco1/results.json"
    content = json.loads(results.read_text())
    content["metrics"]["bbox"]["AP"] = plain_ap(other)
    results.write_text(json.dumps(content))
    (table,) = _tables(tmp_path)
    assert (
        len(computed) == 1 and table.intervals != first and table.intervals["moco", "bbox"].n == 2
    )


@pytest.mark.parametrize("text", ["[]", "{", '{"bbox": 1}', '{"bbox": {"ap": null}}'])
def test_damaged_kept_file__is_computed_again(two_rows, tmp_path, text):
    first = _tables(tmp_path)[0]
    file = tmp_path / "moco1/matches_voc_2007_test_bootstrap.json"
    file.write_text(text)
    second = _tables(tmp_path)[0]
    assert (second.intervals, second.problems) == (first.intervals, first.problems)
    assert len(file.read_text()) > 1000


def test_bootstrap__needs_no_torch():
    code = "import sys, moco_transfer.report.bootstrap; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_kept_records__give_the_same_table(two_rows, tmp_path):
    records, _ = read_runs([tmp_path])
    kept = tmp_path.parent / f"{tmp_path.name}_kept"
    folders = keep_records(records, [], kept)
    assert not list(kept.rglob("*.npz"))
    assert all(len(list(folder.glob("*_bootstrap.json"))) == 1 for folder in folders)
    assert max(file.stat().st_size for file in kept.rglob("*")) < 20_000
    text = render_markdown(_tables(kept))
    assert text.replace(str(kept), "") == render_markdown(_tables(tmp_path)).replace(
        str(tmp_path), ""
    )
    again = tmp_path.parent / f"{tmp_path.name}_again"
    keep_records(read_runs([kept])[0], [], again)
    assert render_markdown(_tables(again)) == text.replace(str(kept), str(again))
    file = next(kept.rglob("*_bootstrap.json"))
    file.write_text(json.dumps({"bbox": {"images": "", "num_images": 3, "samples": [1.0]}}))
    assert str(file) in [problem.path for problem in _tables(kept)[0].problems]
