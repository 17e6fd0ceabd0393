"""The steps of the demo without their computation: order, results, and a second call."""

from __future__ import annotations

from pathlib import Path

import pytest

from moco_transfer.cli import demo, main
from moco_transfer.config import load_pretrain_config


@pytest.fixture
def calls(monkeypatch):
    """Replace the verbs by functions that write the result; return the list of their words."""
    known, made = main.main, []

    def fake(words):
        if words[0] == "demo":
            return known(words)
        made.append(words)
        if words[0] == "pretrain":
            epochs = load_pretrain_config(words[words.index("--config-file") + 1]).SOLVER.EPOCHS
            folder = words[words.index("OUTPUT_DIR") + 1]
            made_file = f"{folder}/checkpoint_{epochs:04d}.pth"
        else:
            made_file = words[-1] if words[0] == "convert" else None
        if made_file:
            Path(made_file).parent.mkdir(parents=True, exist_ok=True)
            Path(made_file).touch()
        return 0

    monkeypatch.setattr(main, "main", fake)
    monkeypatch.setattr(demo, "POOL_IMAGES", 8)
    monkeypatch.setattr(demo, "SCENES", {"train": 1, "test": 1})
    return made


def test_demo__runs_each_step_once(calls, tmp_path, capsys):
    out = tmp_path / "out"
    assert main.main(["demo", "--output", str(out), "--seeds", "2"]) == 0
    verbs = [words[0] for words in calls]
    assert verbs == ["pretrain", "pretrain", "convert", "convert", "benchmark"]
    assert all("--resume" in words for words in calls[:2])
    inits = [word for word in calls[-1] if word.startswith(("moco=", "supervised="))]
    assert inits == [f"{name}={out / name}/backbone.pkl" for name in ("supervised", "moco")]
    assert len(list((out / "pool").rglob("*.jpg"))) == 8
    message = capsys.readouterr().out
    assert message.count("by hand: moco-transfer") == 5
    calls.clear()
    assert main.main(["demo", "--output", str(out), "--seeds", "2"]) == 0
    assert [words[0] for words in calls] == ["benchmark"]


def test_demo__refuses_no_seed(capsys):
    assert main.main(["demo", "--seeds", "0"]) == 2
    assert "argument --seeds: expected a number above 0, got 0" in capsys.readouterr().err
