"""A pipe in place of a file: each reader refuses it, and none waits.

Seen red under: ``regular`` that refuses nothing.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from generated_images import write_voc_scenes

from moco_transfer.cli.main import main
from moco_transfer.convert.read import read_checkpoint
from moco_transfer.data.annotations.cityscapes import read_masks
from moco_transfer.data.annotations.coco import load_json
from moco_transfer.data.annotations.semantic.labels import read_ids
from moco_transfer.data.images.decode import has_16_bits, read_image, read_rgb, read_size
from moco_transfer.data.images.folder import ImageFolder
from moco_transfer.data.images.tar_shards import index_shard
from moco_transfer.report import read_runs
from moco_transfer.report.records import last_iteration, read_run, text_of
from moco_transfer.runtime.checkpoint import load_checkpoint
from moco_transfer.runtime.metrics import read_metrics
from moco_transfer.runtime.text import read_text, read_xml, read_yaml

READERS = {
    "image": lambda file: read_image(str(file), "RGB"),
    "size": lambda file: read_size(str(file)),
    "image of PIL": read_rgb,
    "bits": has_16_bits,
    "image of a folder": lambda file: ImageFolder(file.parent, [file.name]).content(0),
    "labels": lambda file: read_ids(file, 3),
    "instances": lambda file: read_masks(file, bool),
    "text": read_text,
    "xml": read_xml,
    "yaml": read_yaml,
    "json": load_json,
    "checkpoint": load_checkpoint,
    "foreign checkpoint": read_checkpoint,
    "shard": index_shard,
    "metrics": read_metrics,
}


@pytest.fixture(autouse=True)
def alarm():
    def too_long(signum, frame):  # no Exception, which a reader could catch
        pytest.fail("waits for a pipe")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(15)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("name", READERS)
def test_reader__refuses_a_pipe(tmp_path, name):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises((OSError, ValueError), match=r"a pipe"):
        READERS[name](tmp_path / "a.png")


def test_report__names_a_pipe(tmp_path):
    for name in ("results.json", "metrics.json", "config.yaml"):
        os.mkfifo(tmp_path / name)
    runs, [problem] = read_runs([tmp_path])
    assert runs == [] and str(tmp_path) in problem.path
    assert "pipe" in read_run(tmp_path / "results.json").message
    assert text_of(tmp_path, "config.yaml") == "" and last_iteration(tmp_path) == 0


def test_check_data__names_a_pipe(tmp_path, capsys):
    write_voc_scenes(tmp_path, splits={"train": 3}, size=32, seed=0)
    image = next(Path(tmp_path, "JPEGImages").iterdir())
    image.unlink()
    os.mkfifo(image)
    words = ["check-data", "--dataset", f"mine=voc:{tmp_path}:train:{tmp_path / 'classes.txt'}"]
    assert main([*words, "mine"]) == 2
    assert f"{image}" in (said := "".join(capsys.readouterr())) and "pipe" in said
