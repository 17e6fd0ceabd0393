"""Packs: the same images, labels and names as the folder; whole or nothing; damage is found.

Went red under: a shard's first image counted one too far; labels not carried over; the longer
    side made 256; a finished shard written
again; a shard of another folder taken for finished; images that cannot be decoded packed; a
changed file's old bytes kept (neither its size nor its time looked at); a damaged note read without
a guard.
"""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from moco_transfer.cli.main import main
from moco_transfer.data.batches.samplers import EpochBatches
from moco_transfer.data.images import pack as pack_module
from moco_transfer.data.images.folder import PathList, find_images
from moco_transfer.data.images.pack import pack
from moco_transfer.data.images.pack_reader import Pack, check_pack, open_pack
from moco_transfer.data.images.packed import PackedImages
from moco_transfer.data.images.sources import open_source
from moco_transfer.data.views.two_views import Views, collate_views
from moco_transfer.runtime.errors import InputError, MissingFileError


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
    assert pack(source, tmp_path / "p", images_per_shard=3, num_workers=num_workers) == []
    packed = open_source(str(tmp_path / "p"))
    assert isinstance(packed, Pack) and len(packed) == 7 and packed.pixel_change == ""
    assert (
        packed.labels.tolist() == source.labels.tolist()
        and packed.class_names == source.class_names
    )
    for i in range(7):
        assert np.array_equal(packed.decode(i), np.asarray(source.read(i))) and packed.name(
            i
        ).endswith(source.names[i])
    assert check_pack(tmp_path / "p") == 7


def test_pack__raw_and_jpeg_are_made_smaller_and_say_so(folder, tmp_path):
    source = find_images(folder)
    for form in ("raw", "jpeg"):
        pack(source, tmp_path / form, form=form, shorter_side=20)
        packed = open_pack(tmp_path / form)
        for i in range(7):
            image = source.read(i)
            width, height = image.size
            scale = 20 / min(image.size)
            expected = np.asarray(
                image.resize(
                    (max(20, round(width * scale)), max(20, round(height * scale))), Image.BILINEAR
                )
            )
            got = packed.decode(i)
            assert min(got.shape[:2]) == 20 and got.shape == expected.shape
            assert (
                np.array_equal(got, expected)
                if form == "raw"
                else np.abs(got.astype(int) - expected).mean() < 4
            )
        assert "shorter side at most 20 px" in packed.pixel_change and (
            "JPEG quality 95" in packed.pixel_change
        ) == (form == "jpeg")
    pack(source, tmp_path / "large", form="raw", shorter_side=400)
    assert np.array_equal(
        open_pack(tmp_path / "large").decode(2), np.asarray(source.read(2))
    )  # nothing is made larger


def test_pack__an_interrupted_packing_goes_on(folder, tmp_path, monkeypatch):
    source, dst = find_images(folder), tmp_path / "p"
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, dst, images_per_shard=2, on_image=stop)
    with pytest.raises(MissingFileError, match="no finished pack"):
        open_pack(dst)
    assert not list(dst.glob("*.tmp"))
    written = []
    write = pack_module._write_shard
    monkeypatch.setattr(
        pack_module,
        "_write_shard",
        lambda dst, number, *args: written.append(number) or write(dst, number, *args),
    )
    pack(source, dst, images_per_shard=2)
    assert written == [2, 3]
    assert [
        np.array_equal(open_pack(dst).decode(i), np.asarray(source.read(i))) for i in range(7)
    ] == [True] * 7


def test_pack__damage_is_found_and_only_what_is_damaged_is_written_anew(folder, tmp_path):
    source, dst = find_images(folder), tmp_path / "p"
    pack(source, dst, images_per_shard=3)
    data = bytearray((dst / "shard-00001.bin").read_bytes())
    data[10] ^= 1
    (dst / "shard-00001.bin").write_bytes(data)
    open_pack(dst)
    with pytest.raises(InputError, match=r"shard-00001\.bin is not what was written"):
        check_pack(dst)
    (dst / "shard-00000.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="has 5 bytes"):
        open_pack(dst)
    before = (dst / "shard-00002.bin").stat().st_mtime_ns
    pack(source, dst, images_per_shard=3)
    assert check_pack(dst) == 7 and (dst / "shard-00002.bin").stat().st_mtime_ns == before
    (dst / "shard-00001.npz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"shard-00001\.npz is not what was written"):
        open_pack(dst)
    (dst / "pack.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        open_pack(dst)


def test_pack__what_was_changed_or_repaired_since_is_packed_anew_and_nothing_else(
    folder, tmp_path, caplog
):
    """The files' sizes and times count, not their names alone; in one shard, while the others stay
    as they are.
    """
    (folder / "class1" / "bad.jpg").write_bytes(b"no image")
    dst = tmp_path / "p"
    assert len(pack(find_images(folder), dst, images_per_shard=3)) == 1
    before = {path.name: path.stat().st_mtime_ns for path in dst.glob("*.bin")}
    pack(find_images(folder), dst, images_per_shard=3)
    assert {
        path.name: path.stat().st_mtime_ns for path in dst.glob("*.bin")
    } == before and not caplog.records
    Image.new("RGB", (40, 30), (9, 9, 9)).save(folder / "class1" / "bad.jpg")
    assert (
        pack(find_images(folder), dst, images_per_shard=3) == []
        and "have changed since" in caplog.text
    )
    after = {path.name: path.stat().st_mtime_ns for path in dst.glob("*.bin")}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["shard-00002.bin"]
    assert check_pack(dst) == 8 and open_pack(dst).decode(7)[0, 0].tolist() == [9, 9, 9]
    changed = folder / "class0" / "0.png"  # the same number of bytes, another image
    data = changed.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(folder / "other.png")
    other = (folder / "other.png").read_bytes()
    (folder / "other.png").unlink()
    size = max(len(data), len(other))
    changed.write_bytes(data.ljust(size, b"\0"))
    pack(find_images(folder), dst, images_per_shard=3)
    changed.write_bytes(other.ljust(size, b"\0"))
    pack(find_images(folder), dst, images_per_shard=3)
    assert np.array_equal(open_pack(dst).decode(0), np.asarray(find_images(folder).read(0)))


@pytest.mark.parametrize("note", ["{", "[]", '{"origin": 1}', ""])
def test_pack__a_damaged_note_costs_its_shard_alone(folder, tmp_path, caplog, note):
    source, dst = find_images(folder), tmp_path / "p"
    pack(source, dst, images_per_shard=3)
    before = (dst / "shard-00000.bin").stat().st_mtime_ns
    (dst / "shard-00001.json").write_text(note)
    assert pack(source, dst, images_per_shard=3) == []
    assert (
        "shard-00001.json is damaged" in caplog.text
        and (dst / "shard-00000.bin").stat().st_mtime_ns == before
    )
    assert check_pack(dst) == 7


def test_pack__held_images_count_by_their_bytes(tmp_path):
    def held(colour):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(buffer, "PNG")
        return PackedImages(
            "held",
            PathList(["a.png"]),
            buffer.getvalue(),
            np.array([0, len(buffer.getvalue())]),
            np.zeros(0, np.int64),
        )

    for colour in (10, 20):
        pack(held(colour), tmp_path / "p")
        assert open_pack(tmp_path / "p").decode(0)[0, 0, 0] == colour


def test_pack__refuses_a_folder_with_another_pack_and_leaves_out_what_cannot_be_decoded(
    folder, tmp_path
):
    (folder / "class0" / "bad.jpg").write_bytes(b"no image")
    left_out = pack(find_images(folder), tmp_path / "p", images_per_shard=4)
    assert len(left_out) == 1 and "bad.jpg" in left_out[0]
    packed = open_pack(tmp_path / "p")
    assert len(packed) == 7 and not any("bad.jpg" in packed.name(i) for i in range(7))
    assert packed.labels.tolist() == [0] * 4 + [1] * 3
    with pytest.raises(InputError, match="another form"):
        pack(find_images(folder), tmp_path / "p", form="raw", images_per_shard=4)
    with pytest.raises(InputError, match="other images"):
        pack(find_images(folder / "class1"), tmp_path / "p", images_per_shard=4)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_pack__several_processes_read_it_at_once(folder, tmp_path, context):
    pack(find_images(folder), tmp_path / "p", form="raw", images_per_shard=3)
    views = Views(
        open_pack(tmp_path / "p"),
        recipe="v2",
        size=16,
        crop_scale=(0.2, 1.0),
        seed=0,
        pipeline="fast",
    )
    order = EpochBatches(7, batch_size_total=3, epochs=2, seed=0)
    loader = DataLoader(
        views,
        batch_sampler=order,
        num_workers=2,
        collate_fn=collate_views,
        multiprocessing_context=context,
    )
    for batch, places in zip(loader, order, strict=True):
        assert torch.equal(batch["views"], views.__getitems__(places)["views"])
    assert pickle.loads(pickle.dumps(views))[(0, 1)]["label"] == 0


def test_cli_pack__packs_checks_and_refuses(folder, tmp_path, capsys):
    assert main(["pack", str(folder), str(tmp_path / "p"), "--as", "raw", "--size", "16"]) == 0
    assert "7 images in 2 classes packed in" in capsys.readouterr().out
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
