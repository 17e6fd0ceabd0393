"""The example for Lightning has the losses of ``moco-transfer pretrain``, and its file converts.

Seen red under: another seed of the weights; the order without its seed; batches of another sampler;
the same permutation in each step.
"""

from __future__ import annotations

import importlib.util
import json
import shlex

import pytest
from generated_images import write_pool

from moco_transfer.cli.main import main
from moco_transfer.data.views.two_views import TwoViews

lightning = pytest.importorskip("lightning", reason="lightning is not installed (its extra)")

SAME = (
    "pretrain --config-file moco_v2_R_18_96px DATA.ROOT images OUTPUT_DIR out SOLVER.EPOCHS 2"
    ' SOLVER.SCHEDULE step SOLVER.STEPS "()" SOLVER.BASE_LR 0.12 TRAIN.PRECISION fp32'
    " TRAIN.LOG_PERIOD 1 DATA.IMAGE_SIZE 32 DATA.BATCH_SIZE_TOTAL 16 MOCO.BN_GROUP_SIZE 8"
)


class Losses(lightning.Callback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, *_) -> None:
        self.found.append(outputs["loss"].item())


@pytest.fixture(scope="module")
def example(repository):
    spec = importlib.util.spec_from_file_location(
        "lightning_moco", repository / "examples" / "lightning_moco.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_pool(tmp_path / "images", count=40, size=40, seed=0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_module__has_the_losses_of_pretrain(example, folder):
    module = example.LightningMoCo(TwoViews("images", size=32), batch_size=16, group_size=8)
    losses = Losses()
    how = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_steps=4, callbacks=[losses], use_distributed_sampler=False, **how
    )
    trainer.fit(module)
    trainer.save_checkpoint("its_own.ckpt")
    assert main(shlex.split(SAME)) == 0
    rows = (folder / "out" / "metrics.json").read_text().splitlines()
    assert losses.found == [json.loads(row)["loss"] for row in rows] and len(rows) == 4
    words = ["its_own.ckpt", "backbone.pkl", "--from", "state_dict.moco.encoder_q."]
    assert main(["convert", *words, "--no-verify"]) == 0


def test_example__writes_what_convert_takes(example, folder, monkeypatch):
    write_pool(folder / "images", count=64, size=40, seed=0)
    words = "lightning_moco.py images --output out/lightning --steps 1 --size 32"
    monkeypatch.setattr("sys.argv", words.split())
    example.main()
    assert main(["convert", "out/lightning/moco.pth", "backbone.pkl", "--no-verify"]) == 0
