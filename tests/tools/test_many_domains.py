"""The data of examples/many_domains and of the demo: boxes from a mask, no test pixel in a pool.

Seen red under: a box without its last pixel; the test part's rows not subtracted; the whole section
in the pool; BCCD's test list in the pool.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_wheel import BEYOND, WITHIN, write_stained_wheel

from moco_transfer.benchmark.matrix import read_matrix
from moco_transfer.data.annotations.voc import read_voc

FOLDER = Path(__file__).parents[2] / "examples" / "many_domains"


@pytest.fixture
def prepare(monkeypatch):
    spec = importlib.util.spec_from_file_location("prepare", FOLDER / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_bccd(root: Path) -> None:
    for name, colour in (("a", WITHIN), ("b", BEYOND)):
        image = root / "JPEGImages" / f"{name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (320, 160), colour).save(image)
    for split, name in (("train", "a"), ("test", "b")):
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text(f"{name}\n")


def test_prepare__splits_nuclei_and_keeps_test_images_out_of_pools(prepare, tmp_path, monkeypatch):
    wheel, out = tmp_path / "tiny.whl", tmp_path / "domains"
    write_stained_wheel(wheel, monkeypatch)
    write_bccd(tmp_path / "BCCD")
    monkeypatch.setattr(prepare, "_trees", lambda _, root: root.mkdir() or {})
    words = ["--output", out, "--bccd", tmp_path / "BCCD", "--histolytics-wheel", wheel]
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, words)])
    prepare.main()

    found = {
        split: [
            (record["image_id"], tuple(each["bbox"]))
            for record in read_voc(out / "nuclei" / "detection", split, ("nucleus",)).records
            for each in record["annotations"]
        ]
        for split in ("train", "test")
    }
    assert found == {
        "train": [("nest_train_0000_0000", (10, 20, 26, 40))],
        "test": [("nest_test_0000_0128", (12, 8, 32, 38))],
    }
    for split, number in (("train", 1), ("test", 1)):
        for name in ("nucleus", "none"):
            tiles = list((out / "nuclei" / "labelled" / split / name).iterdir())
            assert len(tiles) == number and Image.open(tiles[0]).size == (48, 48)
    for domain, number in (("nuclei", 2 * 4 * 15), ("cells", 2)):
        pool = list((out / domain / "pool").iterdir())
        assert len(pool) == number
        for file in pool:
            assert np.abs(np.asarray(Image.open(file)).astype(int) - WITHIN).max() < 12


@pytest.mark.parametrize("domain", ["trees", "nuclei", "cells", "voc"])
def test_matrices__have_the_same_rows_and_seeds(domain, tmp_path):
    matrix = read_matrix(FOLDER / f"{domain}.yaml", tmp_path)
    assert [init.name for init in matrix.inits] == [
        "random", "supervised", "moco-own", "moco-imagenet",
    ]  # fmt: skip
    assert f"pretrain/{domain}/" in matrix.inits[2].weights
    assert matrix.seeds == (0, 1, 2)
