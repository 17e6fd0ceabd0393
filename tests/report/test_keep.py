"""Slim records: the table that they give is the table of the runs, and they say nothing of where
the runs lay.

Seen red under: numbers rounded; the daggers' cause dropped; two runs of one seed in one folder; an
    absolute path left in a
command, a config or weights; a URL or a relative path changed; weights copied.
"""

from __future__ import annotations

import csv
import io
import json

import pytest

from moco_transfer.report import build_tables, read_runs, render_csv, render_markdown
from moco_transfer.report.curves import loss_curve, metric_curve
from moco_transfer.report.keep import keep_records, without_places
from moco_transfer.report.pretraining import find_pretraining


def _tables(folder):
    return build_tables(read_runs([folder])[0])


@pytest.fixture
def kept(three_rows, make_run, tmp_path):
    """Keep nine runs, one that claims a taken seed, and a pre-training run; return the folders of
    the runs and of the records.
    """
    weights = {
        "path": "/secret/disk/moco/backbone.pkl",
        "sha256": "a" * 64,
        "coverage": {"missing": ["res2"], "matched": 99},
    }
    command = (
        "moco-transfer train --dataset x=voc:/secret/disk/BCCD:test:a,b MODEL.WEIGHTS"
        " /secret/disk/moco/backbone.pkl OUTPUT_DIR out/x"
    )
    run = make_run(
        "again",
        "moco",
        0,
        weights=weights,
        flags={"allow_partial": True},
        command=command,
        bbox={"AP": 1 / 3, "AP-a b": 0.1},
    )
    (run / "config.yaml").write_text(
        "OUTPUT_DIR: /secret/disk/out\nSEED: 3\nURL: https://example.org/a/b\n"
    )
    (run / "checkpoint_0000100.pth").write_bytes(b"0" * 1000)
    lines = [
        {
            "iteration": i,
            "total_loss": 1 / i,
            "loss_cls": 0.1,
            "lr": 0.1,
            "bbox/AP": 5.0,
            "bbox/AP50": 7.0,
        }
        for i in range(1, 100)
    ]
    (three_rows / "moco_1/metrics.json").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"iterat'
    )
    pretrain = three_rows / "out/moco_v2"
    pretrain.mkdir(parents=True)
    (pretrain / "metrics.json").write_text(
        '{"iteration": 5, "loss": 5.123456789, "contrast_acc1": 1.0, "images_per_sec": 3.0}\n'
    )
    (pretrain / "config.yaml").write_text("DATA:\n  ROOT: /secret/disk/images\n")
    records, _ = read_runs([three_rows])
    folder = tmp_path.parent / f"{tmp_path.name}_kept"
    return (
        three_rows,
        folder,
        keep_records(records, find_pretraining([three_rows], records)[0], folder),
    )


def test_keep_records__give_the_same_table(kept):
    runs, folder, targets = kept
    assert len(targets) == 11

    def numbers(place):
        rows = [*csv.DictReader(io.StringIO(render_csv(_tables(place))))]
        return sorted(sorted((row | {"folder": ""}).items()) for row in rows)

    assert numbers(folder) == numbers(runs)
    assert "1 backbone tensors stayed random" in render_markdown(_tables(folder))


def test_keep_records__give_the_same_curves(kept):
    runs, folder, _ = kept
    for read in (loss_curve, lambda row: metric_curve(row, "bbox", "AP")):
        before, after = (
            read(table.rows[-1])[0] for table in (_tables(runs)[0], _tables(folder)[0])
        )
        assert list(after) == list(before)
        means = [[at.mean for at in curve.values()] for curve in (before, after)]
        assert means[1] == pytest.approx(means[0], abs=1e-5)
    (run,), problems = find_pretraining([folder])
    assert (problems, run.folder, run.series["loss"]) == (
        [],
        str(folder / "pretrain/moco_v2"),
        [(5.0, 5.12346)],
    )


def test_keep_records__say_nothing_of_places_and_stay_slim(kept):
    _, folder, targets = kept
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"results.json", "config.yaml", "metrics.json"}
    assert not [file for file in files if "secret" in file.read_text()]
    assert {target.name for target in targets} >= {"moco_seed0", "moco_seed0_2", "moco_v2"}
    data = next(
        data
        for file in folder.rglob("results.json")
        if (data := json.loads(file.read_text())).get("command")
    )
    assert (
        data["command"]
        == "moco-transfer train --dataset x=voc:BCCD:test:a,b MODEL.WEIGHTS backbone.pkl OUTPUT_DIR"
        " out/x"
    )
    assert data["weights"]["path"] == "backbone.pkl"
    assert data["metrics"]["bbox"]["AP"] == 1 / 3
    config = next(folder.rglob("moco_seed0*/config.yaml")).read_text()
    assert config == "OUTPUT_DIR: out\nSEED: 3\nURL: https://example.org/a/b\n"
    assert "lr" not in (folder / "pascal_voc_R_18_FPN/moco_seed1/metrics.json").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "out/voc/moco and ../a/b and ./c/d and ~/e/f",
            "out/voc/moco and ../a/b and ./c/d and ~/e/f",
        ),
        ("/a/b/c.pkl", "c.pkl"),
        ("['/a/b', \"/c/d/\"]", "['b', \"\"]"),
        ("https://host/a/b s3://bucket/a/b", "https://host/a/b s3://bucket/a/b"),
        ("1/2, and /, and AP/AP50", "1/2, and /, and AP/AP50"),
        ("x=coco:/a/b.json:/a/images", "x=coco:b.json:images"),
    ],
)
def test_without_places(text, expected):
    assert without_places(text) == expected
