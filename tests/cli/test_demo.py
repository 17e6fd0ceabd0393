"""The steps of the demo without their computation: order, results, interruption, a second call.

Went red under: a finished step run again; the estimate counting finished runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_wheel import write_stained_wheel

from moco_transfer.cli import demo, main
from moco_transfer.config import load_pretrain_config

VERBS = [*["pretrain"] * 2, *["convert"] * 2, *["knn"] * 3, "benchmark"]


class Interrupt:
    """Interrupts the verb with this number; None for none."""

    at: int | None = None


@pytest.fixture
def calls(monkeypatch):
    """Replace the verbs by functions that write the result; return the list of their words."""
    known, made = main.main, []

    def fake(words):
        if words[0] == "demo":
            return known(words)
        if Interrupt.at == len(made):
            return 130
        made.append(words)
        result = {
            "pretrain": lambda: checkpoint_of(words),
            "convert": lambda: words[-1],
            "knn": lambda: f"{words[words.index('--output') + 1]}/results.json",
            "benchmark": lambda: f"{words[words.index('--output') + 1]}/table.md",
        }[words[0]]()
        Path(result).parent.mkdir(parents=True, exist_ok=True)
        Path(result).write_text(json.dumps({"top1": 61.8}))
        return 0

    monkeypatch.setattr(main, "main", fake)
    monkeypatch.setattr(demo, "_seconds_of_a_training_step", lambda: 6.0)
    monkeypatch.setattr(Interrupt, "at", None)
    return made


def checkpoint_of(words: list[str]) -> str:
    epochs = load_pretrain_config(words[words.index("--config-file") + 1]).SOLVER.EPOCHS
    return f"{words[words.index('OUTPUT_DIR') + 1]}/checkpoint_{epochs:04d}.pth"


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    wheel = write_stained_wheel(tmp_path / "tiny.whl", monkeypatch)
    return ["demo", "--output", str(tmp_path / "out"), "--seeds", "2", "--wheel", str(wheel)]


def test_demo__runs_each_step_once(calls, words, tmp_path, capsys):
    out = tmp_path / "out"
    assert main.main(words) == 0
    assert [made[0] for made in calls] == VERBS
    assert all("--resume" in made for made in calls[:2])
    inits = [word for word in calls[-1] if word.startswith(("moco=", "supervised="))]
    assert inits == [f"{name}={out / name}/backbone.pkl" for name in ("supervised", "moco")]
    assert len(list((out / "images" / "pool").rglob("*.jpg"))) == 2 * 4 * 15
    message = capsys.readouterr().out
    assert message.count("by hand: moco-transfer") == len(VERBS)
    assert message.count("BSD 3-clause licence") == 1 and message.count("61.8 %") == 3
    moco, supervised, _, knn, fine_tuning_run = (step["cost"] for step in demo.STEPS)
    units = moco + supervised + 3 * knn + 6 * fine_tuning_run
    assert f"about {units * 6 / 60:.0f} minutes" in message
    calls.clear()
    assert main.main(words) == 0
    assert [made[0] for made in calls] == ["benchmark"]


@pytest.mark.parametrize("at", range(len(VERBS)))
def test_demo__interrupted_at_a_step_continues_there(calls, words, tmp_path, monkeypatch, at):
    Interrupt.at = at
    assert main.main(words) == 130
    Interrupt.at = None
    (tmp_path / "tiny.whl").unlink()  # the tiles are there
    assert main.main(words) == 0
    assert [made[0] for made in calls] == VERBS


def test_demo__without_the_wheel_is_one_sentence(words, tmp_path, capsys):
    (tmp_path / "tiny.whl").write_bytes(b"half of it")
    assert main.main(words) == 2
    error = capsys.readouterr().err
    assert "SHA-256" in error and str(tmp_path / "tiny.whl") in error
    assert not (tmp_path / "out" / "images").exists()


def test_demo__refuses_no_seed(capsys):
    assert main.main(["demo", "--seeds", "0"]) == 2
    assert "argument --seeds: expected a number above 0, got 0" in capsys.readouterr().err
