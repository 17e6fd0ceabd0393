"""``--json``: one valid document that agrees with the text, and the same exit status.

Seen red under: the text printed too; NaN written as NaN; status 0 whatever was found; problems left
out of a data set; the first seed's value in place of the mean; a documented key renamed.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time

import pytest
import torch

from moco_transfer.cli.main import main
from moco_transfer.convert import convert_checkpoint
from moco_transfer.data.annotations import catalog
from moco_transfer.models import build_encoder

from .conftest import REPOSITORY, moco_transfer

DOCUMENTED = re.findall(
    r"^\|(?: `([\w -]+)`)? \| (`[^|]+`) \|", (REPOSITORY / "docs" / "cli.md").read_text(), re.M
)


def _no_constant(text: str):
    raise AssertionError(f"{text} is no JSON")


def both(capsys, *words: object, status: int = 0) -> tuple[str, dict]:
    """Return the text and the document of one command; both have ended with ``status``."""
    words = tuple(map(str, words))
    capsys.readouterr()
    assert main(words) == status
    text = capsys.readouterr().out
    assert main([*words, "--json"]) == status
    document = json.loads(capsys.readouterr().out, parse_constant=_no_constant)
    names = {"convert": "convert --inspect", "doctor": "doctor RUN" if words[1:] else "doctor"}
    verb = names.get(words[0], words[0])
    assert list(document) == documented(verb, more="--summary" in words)
    return text, document


def documented(verb: str, *, more: bool) -> list[str]:
    keys: dict[str, list[str]] = {}
    here = ""
    for name, cell in DOCUMENTED:
        here = name or here
        keys.setdefault(here, []).extend(re.findall(r"`(\w+)`", cell))
    return [key for key in keys[verb] if key != "comparisons" or more]


@pytest.mark.parametrize("missing", [None, "cv2"])
def test_doctor(capsys, monkeypatch, missing):
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    text, found = both(capsys, "doctor", status=1 if missing else 0)
    assert found["works"] is (missing is None)
    lines = [f"{name:24} {version}" for name, version in found["versions"].items()]
    lines += [f"{check['status']:5} {check['text']}" for check in found["checks"]]
    assert text.splitlines() == [*lines, *(f"note  {note}" for note in found["notes"])]


def test_doctor__of_a_run(capsys, tmp_path):
    beat = {"rank": 0, "work": "pre-training", "iteration": 7, "total": 9, "idle_sec": 1.0}
    beat |= {"time": time.time() - 120, "at": "a.py:1", "pid": 1, "host": "elsewhere"}
    (tmp_path / "heartbeat.json").write_text(json.dumps(beat))
    text, found = both(capsys, "doctor", tmp_path, status=1)
    (run,) = found["runs"]
    assert text.startswith(f"HANGS {run['folder']}\n") and run["hangs"]
    assert run["processes"][0]["iteration"] == 7 and "pre-training, 7 of 9" in text


def test_check_data(capsys, monkeypatch, scenes, tmp_path):
    monkeypatch.setattr(catalog, "_OWN", {})
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    names = scenes / "classes.txt"
    words = [f"--dataset={split}=voc:{root}:{split}:{names}" for split in ("train", "test")]
    text, found = both(capsys, "check-data", *words)
    assert found["is_usable"] and found["config"] is None
    counts = [(d["name"], d["num_images"], d["num_boxes"]) for d in found["data_sets"]]
    printed = re.findall(r"(\w+): images: (\d+), boxes: (\d+)", text)
    assert counts == [(name, int(a), int(b)) for name, a, b in printed] and len(counts) == 2
    assert sum(found["data_sets"][0]["boxes_of_class"].values()) == counts[0][2]
    sentences = [r for d in found["data_sets"] for r in d["remarks"]] + found["remarks"]
    assert text.count("remark: ") == len(sentences) > 0
    assert all(f"remark: {sentence}" in text for sentence in sentences)

    image = next((root / "JPEGImages").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    text, found = both(capsys, "check-data", *words, status=2)
    problems = [problem for d in found["data_sets"] for problem in d["problems"]]
    assert not found["is_usable"] and image.name in problems[0]
    assert re.findall(r"PROBLEM: (.*)", text) == problems


def test_check_data__with_a_config(capsys, monkeypatch, scenes):
    monkeypatch.setattr(catalog, "_OWN", {})
    names = scenes / "classes.txt"
    own = [f"--dataset={split}=voc:{scenes}:{split}:{names}" for split in ("train", "test")]
    sets = ["DATASETS.TRAIN", "train", "DATASETS.TEST", "test"]
    words = ["--config-file", "pascal_voc_R_18_FPN_small", *own, *sets]
    capsys.readouterr()
    assert main(["check-data", "--json", *words]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert config["classes"] == names.read_text().split() and config["tasks"] == ["bbox"]


def test_inspect(capsys, tmp_path):
    torch.save({"model": build_encoder("resnet18", num_classes=2).state_dict()}, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "a.pkl", verify=False)
    text, found = both(capsys, "convert", "--inspect", tmp_path / "a.pkl")
    assert f"sha256        {found['sha256']}" in text and f"({found['layout']})" in text
    covered = found["coverage"]
    assert f"covers {len(covered['matched'])} of {len(covered['matched'])} backbone" in text
    assert covered["missing"] == covered["unused"] == [] and found["arch"] == "resnet18"
    assert all(f"{key}: " in text for key in found["stamp"]) and found["problem"] is None

    torch.save({"weight": torch.zeros(2)}, tmp_path / "b.pth")
    text, found = both(capsys, "convert", "--inspect", tmp_path / "b.pth")
    assert found["problem"] in text and found["coverage"] is found["stamp"] is None


def test_inspect__json_alone_is_refused(capsys, tmp_path):
    assert main(["convert", "--json", "a.pth", str(tmp_path / "a.pkl")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "--inspect" in printed.err


def test_reproduce(capsys):
    text, found = both(capsys, "reproduce", "table6")
    assert {cell["table"] for cell in found["cells"]} == {"table6"}
    for cell in found["cells"]:
        assert f"{cell['published']:.1f}" in text and cell["row"] in text
    assert main(["reproduce", "table6", "--json", "--output", "x", "--init", "moco=y"]) == 2


@pytest.fixture
def runs(tmp_path):
    """Records of the repository, one with a metric that is no number, and one that is damaged."""
    folder = tmp_path / "runs"
    shutil.copytree(REPOSITORY / "docs" / "results" / "voc", folder)
    file = sorted(folder.rglob("results.json"))[0]
    record = json.loads(file.read_text())
    record["metrics"]["bbox"]["AP75"] = float("nan")
    file.write_text(json.dumps(record))
    (folder / "cut").mkdir()
    (folder / "cut" / "results.json").write_text(file.read_text()[:100])
    return folder


def test_report(capsys, runs):
    text, found = both(capsys, "report", runs)
    assert found["tables"]
    for table in found["tables"]:
        assert f"### {table['setting']['task']}\n" in text
        for row in table["rows"]:
            ap = row["metrics"]["bbox/AP"]
            spread = "" if ap["std"] is None else f" ± {ap['std']:.1f}"
            (line,) = re.findall(rf"^\| {re.escape(row['init'])}\W*\|.*", text, re.M)
            assert f"{ap['mean']:.1f}{spread}" in line and len(ap["by_seed"]) == ap["n"]
            if ap["difference"]:
                assert f"{abs(ap['difference']['value']):.1f} " in line
            assert f" {row['n']} |" in line
    warnings = [p for t in found["tables"] for p in t["problems"]] + found["problems"]
    assert any("AP75" in w["message"] for w in warnings)
    assert any(w["path"].endswith("cut/results.json") for w in warnings)
    for warning in warnings:
        assert f"**Warning:** {warning['path']}: {warning['message']}" in text


def test_report__of_a_summary_and_what_cannot_be(capsys, runs, tmp_path):
    other = tmp_path / "other"
    for file in sorted(runs.rglob("results.json")):
        if file.parent.name != "cut":
            record = json.loads(file.read_text()) | {"task": "another"}
            folder = other / file.relative_to(runs).parent
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(record))
    text, found = both(capsys, "report", runs, other, "--summary")
    (comparison,) = found["comparisons"]
    for row in comparison["standings"]:
        assert re.search(rf"^\| {re.escape(row['init'])} \|.* {row['mean_rank']:.2f} ", text, re.M)
    assert main(["report", "--readme", "README.md", "--json"]) == 2
    assert main(["report", str(runs), "--watch", "--json"]) == 2


def test_stdout_has_the_document_alone(runs):
    done = moco_transfer("report", runs, "--json", "--keep", runs.parent / "kept")
    assert done.returncode == 0 and json.loads(done.stdout)["tables"]
    assert (runs.parent / "kept").is_dir()
    failed = moco_transfer("report", runs / "nowhere", "--json")
    assert (failed.returncode, failed.stdout) == (2, "") and "nowhere" in failed.stderr
