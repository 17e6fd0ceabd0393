"""Packs: the same images, labels and order as the folder; whole or nothing; damage is found.

Went red under: a shard's first image counted one too far; labels not carried over; the longer side
made 256; a finished shard written again; a shard of another folder taken for finished; images that
cannot be decoded packed; a changed file taken for packed; pack.json written after the first shard.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from moco_transfer.cli.main import main
from moco_transfer.data.images import pack as pack_module
from moco_transfer.data.images.cifar10 import HeldImages
from moco_transfer.data.images.decode import decode_pixels, encode_npy, read_rgb
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.images.image_source import Table
from moco_transfer.data.images.pack import PackSettings, check_pack, pack
from moco_transfer.data.images.sources import open_source
from moco_transfer.data.images.tar_shards import LocalShards
from moco_transfer.data.views.order import EpochBatches
from moco_transfer.data.views.view_batch import ViewMaker, Views
from moco_transfer.runtime.errors import InputError, MissingFileError

MAKE_VIEWS = ViewMaker("v2", 16, (0.2, 1.0), 2, "fast")


def settings(images_per_shard=3, **more):
    return PackSettings(images_per_shard=images_per_shard, **more)


def written_at(dst):
    return {path.name: path.stat().st_mtime_ns for path in sorted(dst.glob("*.tar"))}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(7):
        path = tmp_path / "src" / f"class{i % 2}" / f"{i}.{'jpg' if i % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + i, 50 - i, 3), dtype=np.uint8)).save(path)
    return tmp_path / "src"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pack__original_gives_the_folders_images_labels_and_names(folder, tmp_path, num_workers):
    source = find_images(folder)
    assert pack(source, tmp_path / "p", settings(), num_workers=num_workers) == []
    packed = open_source(str(tmp_path / "p"))
    assert isinstance(packed, LocalShards) and len(packed) == 7 and packed.pixel_change == ""
    assert packed.labels.tolist() == source.labels.tolist()
    assert packed.class_names == source.class_names
    for i in range(7):
        assert bytes(packed.content(i)) == source.content(i)
        assert packed.name(i).endswith(f"shard-0000{i // 3}.tar: {source.names[i]}")
    assert check_pack(tmp_path / "p") == 7


def test_pack__raw_and_jpeg_are_made_smaller_and_say_so(folder, tmp_path):
    source = find_images(folder)
    for form in ("raw", "jpeg"):
        pack(source, tmp_path / form, PackSettings(form, 20))
        packed = open_source(str(tmp_path / form))
        assert packed.name(0).endswith({"raw": ".npy", "jpeg": ".jpg"}[form])
        for i in range(7):
            image = read_rgb(source.content(i))
            width, height = image.size
            scale = 20 / min(image.size)
            size = max(20, round(width * scale)), max(20, round(height * scale))
            expected = np.asarray(image.resize(size, Image.BILINEAR))
            got = decode_pixels(packed.content(i))
            assert min(got.shape[:2]) == 20 and got.shape == expected.shape
            if form == "raw":
                assert np.array_equal(got, expected)
            assert np.abs(got.astype(int) - expected).mean() < 4
        assert "shorter side at most 20 px" in packed.pixel_change
        assert ("JPEG quality 95" in packed.pixel_change) == (form == "jpeg")


def test_pack__raw_is_plain_npy_that_gives_the_views_of_the_original(folder, tmp_path):
    """Nothing is made larger; and anybody reads the members with tar and numpy.load."""
    source = find_images(folder)
    pack(source, tmp_path / "p", PackSettings("raw", 400))
    packed = open_source(str(tmp_path / "p"))
    with tarfile.open(tmp_path / "p" / "shard-00000.tar") as archive:
        names = archive.getnames()
        assert names[:2] == ["class0/0.npy", "class0/0.cls"]
        pixels = np.load(io.BytesIO(archive.extractfile(names[0]).read()))
    assert np.array_equal(pixels, decode_pixels(source.content(0)))
    places = [(epoch, i) for epoch in range(2) for i in range(7)]
    for pipeline in ("fast", "reference"):
        make = ViewMaker("v2", 16, (0.2, 1.0), 2, pipeline)
        a, b = (Views(images, make, seed=0)[places] for images in (source, packed))
        assert torch.equal(a["views"], b["views"]) and torch.equal(a["label"], b["label"])


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 0, 3), np.uint8)]
)
def test_decode_pixels__refuses_arrays_that_are_no_images(pixels):
    with pytest.raises(ValueError, match="expected uint8"):
        decode_pixels(encode_npy(pixels))
    with pytest.raises(ValueError):
        decode_pixels(encode_npy(np.zeros((4, 4, 3), np.uint8))[:-1])


def test_pack__names_that_webdataset_would_misread(tmp_path):
    for name in ("a.b.jpg", "a.png", "a.jpg", "x/__y__.png", "__meta__/z.png"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "src" / name)
    source = find_images(tmp_path / "src")
    pack(source, tmp_path / "p", PackSettings())
    packed = open_source(str(tmp_path / "p"))
    assert [bytes(packed.content(i)) for i in range(5)] == [source.content(i) for i in range(5)]
    names = [packed.name(i).split(": ")[1] for i in range(5)]
    assert names[1:3] == ["a_b.jpg", "a.jpg"] and names[3] == "000000003.png"


def test_pack__an_interrupted_packing_continues(folder, tmp_path):
    source, dst = find_images(folder), tmp_path / "p"
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, dst, settings(2), on_image=stop)
    with pytest.raises(MissingFileError, match="unfinished pack"):
        open_source(str(dst))
    assert not list(dst.glob("*.tmp"))
    before = written_at(dst)
    assert sorted(before) == ["shard-00000.tar", "shard-00001.tar"]
    pack(source, dst, settings(2))
    assert before.items() <= written_at(dst).items()
    packed = open_source(str(dst))
    assert [bytes(packed.content(i)) for i in range(7)] == [source.content(i) for i in range(7)]


def test_pack__ended_just_after_the_first_shard_continues(folder, tmp_path, monkeypatch):
    dst, write = tmp_path / "p", pack_module._write_shard

    def then_end(*args):
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pack_module, "_write_shard", then_end)
        pack(find_images(folder), dst, settings(2))
    assert sorted(path.name for path in dst.iterdir()) == ["pack.json", "shard-00000.tar"]
    pack(find_images(folder), dst, settings(2))
    assert check_pack(dst) == 7


def test_pack__damage_is_found_and_only_what_is_damaged_is_written_again(folder, tmp_path):
    source, dst = find_images(folder), tmp_path / "p"
    pack(source, dst, settings())
    data = bytearray((dst / "shard-00001.tar").read_bytes())
    data[600] ^= 1
    (dst / "shard-00001.tar").write_bytes(data)
    assert len(open_source(str(dst))) == 7
    with pytest.raises(InputError, match=r"shard-00001\.tar is not what was written"):
        check_pack(dst)
    (dst / "shard-00000.tar").write_bytes(b"short")
    with pytest.raises(InputError, match="has 5 bytes"):
        open_source(str(dst))
    before = written_at(dst)
    pack(source, dst, settings())
    after = written_at(dst)
    assert [name for name in after if after[name] == before[name]] == ["shard-00002.tar"]
    assert check_pack(dst) == 7
    (dst / "shard-00002.tar").unlink()
    with pytest.raises(MissingFileError, match="unfinished pack"):
        open_source(str(dst))
    for content, sentence in (
        ("{", "pack.json is not json"),
        ('{"format": "moco_transfer.pack/1"}', "format"),
    ):
        (dst / "pack.json").write_text(content)
        with pytest.raises(InputError, match=sentence):
            open_source(str(dst))


def test_pack__again_writes_nothing_and_refuses_changed_files(folder, tmp_path, caplog):
    """The files' sizes and times count, not their names alone."""
    dst = tmp_path / "p"
    caplog.set_level("WARNING", "moco_transfer")
    pack(find_images(folder), dst, settings())
    before = written_at(dst)
    pack(find_images(folder), dst, settings())
    assert written_at(dst) == before and "written again" not in caplog.text
    changed = folder / "class0" / "0.png"
    status = changed.stat()
    for times in ((status.st_mtime_ns, status.st_mtime_ns + 10**9), None):
        if times:  # the same number of bytes
            os.utime(changed, ns=times)
        else:
            Image.new("RGB", (8, 8)).save(changed)
        with pytest.raises(InputError, match="changed"):
            pack(find_images(folder), dst, settings())


def test_pack__held_images_count_by_their_bytes(tmp_path):
    def held(colour):
        data = encode_npy(np.full((8, 8, 3), colour, np.uint8))
        return HeldImages("held", Table([data], bytes), labels=np.zeros(1, np.int64))

    pack(held(10), tmp_path / "p", PackSettings())
    packed = open_source(str(tmp_path / "p"))
    assert decode_pixels(packed.content(0))[0, 0, 0] == 10
    with pytest.raises(InputError, match="other images"):
        pack(held(20), tmp_path / "p", PackSettings())


def test_pack__refuses_another_pack_and_leaves_out_what_cannot_be_decoded(folder, tmp_path):
    (folder / "class0" / "bad.jpg").write_bytes(b"no image")
    left_out = pack(find_images(folder), tmp_path / "p", settings(4))
    assert len(left_out) == 1 and "bad.jpg" in left_out[0]
    packed = open_source(str(tmp_path / "p"))
    assert len(packed) == 7 and not any("bad.jpg" in packed.name(i) for i in range(7))
    assert packed.labels.tolist() == [0] * 4 + [1] * 3
    for other, form in ((folder, "raw"), (folder / "class1", "original")):
        with pytest.raises(InputError, match="other images, of another form"):
            pack(find_images(other), tmp_path / "p", settings(4, form=form))


def test_pack__spawned_processes_read_it(folder, tmp_path):
    pack(find_images(folder), tmp_path / "p", settings(form="raw"))
    views = Views(open_source(str(tmp_path / "p")), MAKE_VIEWS, seed=0)
    order = EpochBatches(7, batch_size_total=3, epochs=2, seed=0)
    loader = DataLoader(
        views, batch_size=None, sampler=order, num_workers=1, multiprocessing_context="spawn"
    )
    for batch, places in zip(loader, order, strict=True):
        assert torch.equal(batch["views"], views[places]["views"])
    assert pickle.loads(pickle.dumps(views))[[(0, 1)]]["label"].tolist() == [0]


def test_cli_pack__packs_checks_and_refuses(folder, tmp_path, capsys):
    assert main(["pack", str(folder), str(tmp_path / "p"), "--as", "raw", "--size", "16"]) == 0
    assert "7 images in 2 classes in 1 shards" in capsys.readouterr().out
    assert main(["pack", "--check", str(tmp_path / "p")]) == 0
    assert "every byte as it was written" in capsys.readouterr().out
    assert json.loads((tmp_path / "p" / "pack.json").read_text())["images"] == 7
    for words in (
        ["pack", str(folder)],
        ["pack", str(tmp_path / "nowhere"), str(tmp_path / "q")],
        ["pack", "--check", str(folder)],
    ):
        assert main(words) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
