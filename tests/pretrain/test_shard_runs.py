"""Whole runs on tar shards: resumed anywhere they end with the same bits, and two processes read
different images.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from generated_images import write_pool

from moco_transfer.cli.main import main
from moco_transfer.config import load_pretrain_config
from moco_transfer.pretrain import plan

from .small_runs import SmallEncoder, pretrain

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("webdataset") is None,
    reason="webdataset is not installed (extra 'shards')",
)

TINY = {
    "DATA.IMAGE_SIZE": "16",
    "DATA.BATCH_SIZE_TOTAL": "8",
    "DATA.SHUFFLE_BUFFER": "6",
    "MOCO.QUEUE_SIZE": "20",
    "MOCO.BN_GROUP_SIZE": "4",
    "SOLVER.EPOCHS": "2",
    "TRAIN.LOG_PERIOD": "1",
    "TRAIN.CHECKPOINT_PERIOD_ITERS": "3",
    "TRAIN.KEEP_CHECKPOINTS": "0",
    "TRAIN.PRECISION": "fp32",
    "LOGGERS": "()",
}


def words(**more: object) -> list[str]:
    settings = TINY | {key.replace("__", "."): str(value) for key, value in more.items()}
    return [word for pair in settings.items() for word in pair]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Four shards of eight images, two of them damaged."""
    import tarfile

    folder = tmp_path_factory.mktemp("data")
    write_pool(folder / "pool", count=32, size=24, seed=0)
    files = sorted((folder / "pool").rglob("*.jpg"))
    for broken in (files[3], files[20]):
        broken.write_bytes(broken.read_bytes()[:60])
    for s in range(4):
        (folder / "shards").mkdir(exist_ok=True)
        with tarfile.open(folder / "shards" / f"{s}.tar", "w") as archive:
            for i in range(8 * s, 8 * s + 8):
                archive.add(files[i], f"{i:03d}.jpg")
    return folder / "shards"


@pytest.mark.parametrize(("num_workers", "num_images"), [(0, 0), (2, 32)])
def test_resume__equals_the_whole_run_bit_for_bit(
    shards, tmp_path, num_workers, num_images, monkeypatch
):
    """Read by number, and as a stream."""
    monkeypatch.setattr(plan, "build_encoder", SmallEncoder)

    def settings(name: str) -> list[str]:
        return words(
            DATA__ROOT=shards,
            DATA__NUM_WORKERS=num_workers,
            DATA__NUM_IMAGES=num_images,
            DATA__MAX_UNREADABLE=0.1,
            OUTPUT_DIR=tmp_path / name,
        )

    pretrain(load_pretrain_config("demo_moco", settings("whole")))
    whole = torch.load(tmp_path / "whole" / "checkpoint_0002.pth", weights_only=True)
    assert whole["iteration"] == 8 and len(whole["unreadable"]) == 2
    for name in ("0000_iter00000003", "0001_iter00000006"):  # in the middle of either epoch
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "whole" / f"checkpoint_{name}.pth", tmp_path / name)
        (tmp_path / name / "last_checkpoint").write_text(f"checkpoint_{name}.pth\n")
        pretrain(load_pretrain_config("demo_moco", settings(name)), resume=True)
        resumed = torch.load(tmp_path / name / "checkpoint_0002.pth", weights_only=True)
        assert resumed["state_dict"].keys() == whole["state_dict"].keys()
        for key, tensor in whole["state_dict"].items():
            assert torch.equal(tensor, resumed["state_dict"][key]), key
        for mine, theirs in zip(
            whole["optimizer"]["state"].values(),
            resumed["optimizer"]["state"].values(),
            strict=True,
        ):
            assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])
        assert resumed["unreadable"] == whole["unreadable"]


def test_bad_shards__one_sentence_and_no_run_folder(shards, tmp_path, capsys):
    def refused(**more: object) -> str:
        capsys.readouterr()
        command = [
            "pretrain",
            "--config-file",
            "demo_moco",
            *words(OUTPUT_DIR=tmp_path / "run", **({"DATA__ROOT": shards} | more)),
        ]
        assert main(command) == 2
        message = capsys.readouterr().err.strip()
        assert "\n" not in message and "Traceback" not in message
        return message

    assert "has 4 shards, fewer than the 5 data workers" in refused(
        DATA__NUM_WORKERS=5, DATA__NUM_IMAGES=32
    )
    assert "32 images, less than one batch of 40" in refused(DATA__BATCH_SIZE_TOTAL=40)
    assert "MECHANISM supervised needs images of at least two classes, found 0" in refused(
        MECHANISM="supervised"
    )
    assert "set DATA.NUM_IMAGES" in refused(DATA__ROOT="https://example.org/{0..3}.tar")
    sentence = refused(MECHANISM="supervised", DATA__NUM_IMAGES=32)
    assert "Set DATA.NUM_IMAGES to 0, so that labels are read" in sentence
    assert "KNN.TRAIN must be given where DATA.ROOT names shards" in refused(
        KNN__TEST=shards, DATA__NUM_IMAGES=32
    )
    assert not (tmp_path / "run").exists()
    message = refused(DATA__NUM_WORKERS=2, DATA__MAX_UNREADABLE=0.01)
    assert "2 of 32 images cannot be read" in message or "1 of 32 images cannot be read" in message
    assert (
        "shards/0.tar: 003.jpg" in message or "shards/2.tar: 020.jpg" in message
    )  # whichever comes first


@pytest.mark.slow
def test_two_processes__end_equal_and_read_different_images(shards, tmp_path):
    repository = Path(__file__).resolve().parents[2]
    overrides = words(
        DATA__ROOT=shards,
        DATA__NUM_WORKERS=2,
        DATA__NUM_IMAGES=32,
        DATA__MAX_UNREADABLE=0.2,
        OUTPUT_DIR=tmp_path / "run",
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    for index in shards.glob("*.npz"):
        index.unlink()
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    script = repository / "tests" / "pretrain" / "shard_processes.py"
    done = subprocess.run(
        [*command, str(script), *overrides],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(shards.glob("*.index.npz"))) == 4  # two by either process
    # 32 images, 2 of them unreadable; each of the four streams has one shard of eight and gives
    # two batches of four
    lines = [line for line in done.stdout.splitlines() if line.startswith("EPOCH")]
    assert lines == [f"EPOCH {epoch} 16 16 common 0 distinct 30" for epoch in (0, 1)]
