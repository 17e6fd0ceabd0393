"""Checkpoints: found again, safe to read, and clear when they are not.

Went red under: deleting the newest file instead of the oldest; weights_only=False; what
    last_checkpoint names taken unseen; no look at the checksums; zipfile's own is_zipfile; a
    damaged last_checkpoint left as it is.
"""

from __future__ import annotations

import logging
import pickle
import struct

import pytest
import torch

from moco_transfer.runtime.checkpoint import CheckpointFolder, load_checkpoint
from moco_transfer.runtime.errors import InputError, MissingFileError


def test_checkpoint_folder__last_and_keep(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.last() is None
    for name in ("0001", "0002", "0003_iter00000007"):
        folder.save({"x": torch.arange(3)}, name)
    assert folder.last() == tmp_path / "checkpoint_0003_iter00000007.pth"
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
        "checkpoint_0002.pth",
        "checkpoint_0003_iter00000007.pth",
    ]
    assert torch.equal(load_checkpoint(folder.last())["x"], torch.arange(3))


def test_checkpoint_folder__pointer_to_a_missing_file__error(tmp_path):
    (tmp_path / "last_checkpoint").write_text("checkpoint_0009.pth")
    with pytest.raises(MissingFileError, match="checkpoint_0009.pth, which is not in"):
        CheckpointFolder(tmp_path).last()


def saved(folder, *names, keep=0):
    for number, name in enumerate(names):
        CheckpointFolder(folder, keep=keep).save({"x": torch.full((1000,), float(number))}, name)


def flip(path):
    """Change a bit of a weight."""
    content, data = torch.tensor(2.0).numpy().tobytes(), bytearray(path.read_bytes())
    data[data.index(content * 3) + 3] ^= 1
    path.write_bytes(data)


def test_load_checkpoint__a_changed_weight_is_refused(tmp_path):
    saved(tmp_path, "0001", "0002", "0003")
    flip(tmp_path / "checkpoint_0003.pth")
    with pytest.raises(
        InputError, match=r"checkpoint_0003.pth is truncated or damaged \(its record"
    ):
        load_checkpoint(tmp_path / "checkpoint_0003.pth")


@pytest.mark.parametrize(
    "damage",
    ["flip", "cut", "gone", "no pointer", "pointer", "pointer to a folder", "cut pointer", "all"],
)
def test_newest__the_one_before_is_taken_and_named(tmp_path, damage, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("moco_transfer"), "propagate", True)
    saved(tmp_path, "0001", "0001_iter00000007", "0002", "0003")
    pointer, last = tmp_path / "last_checkpoint", tmp_path / "checkpoint_0002.pth"
    pointer.write_text(last.name)  # by the user: 0003 is not wanted
    taken, warned = "checkpoint_0001_iter00000007.pth", last.name
    if damage == "flip":
        flip(last)
    elif damage in ("cut", "all"):
        for path in tmp_path.glob("*.pth") if damage == "all" else [last]:
            path.write_bytes(path.read_bytes()[:900])
    elif damage == "gone":
        last.unlink()
    elif damage == "no pointer":
        pointer.unlink()
        taken, warned = "checkpoint_0003.pth", ""
    else:
        pointer.write_bytes(
            {"pointer": b"\0\xff\n" * 9, "cut pointer": b"ch"}.get(
                damage, b"../elsewhere/checkpoint"
            )
        )
        taken, warned = "checkpoint_0003.pth", "last_checkpoint "
    if damage == "all":
        with pytest.raises(InputError, match=r"checkpoint_0002.pth is truncated or damaged"):
            CheckpointFolder(tmp_path).newest()
        return
    path, state = CheckpointFolder(tmp_path).newest()
    assert path.name == taken and int(state["x"][0]) == sorted(
        ["checkpoint_0001.pth", "checkpoint_0001_iter00000007.pth", "checkpoint_0002.pth"]
        + ["checkpoint_0003.pth"]
    ).index(taken)
    assert (warned in caplog.text and taken in caplog.text) if warned else not caplog.text


def test_load_checkpoint__a_table_that_pythons_own_test_rejects(tmp_path):
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 2)  # of zip64, on two disks
    (tmp_path / "c.pth").write_bytes(b"\0" * 100 + locator + b"PK\5\6" + bytes(18))
    with pytest.raises(InputError, match=r"c\.pth"):
        load_checkpoint(tmp_path / "c.pth")


def test_resume_from__takes_the_place_of_a_damaged_pointer(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for name in ("0001", "0002"):
        folder.save({"x": torch.arange(3)}, name)
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\0damaged")
    path, _ = folder.newest()
    folder.resume_from(path)
    assert folder.last() == path == tmp_path / "checkpoint_0002.pth"
    folder.prune(keep=1)
    assert [each.name for each in tmp_path.glob("*.pth")] == ["checkpoint_0002.pth"]


def test_newest__without_any_is_none(tmp_path):
    assert CheckpointFolder(tmp_path).newest() is None


def test_save__keeps_the_one_before_and_not_a_later_one_in_its_place(tmp_path):
    saved(tmp_path, "0001", "0002", "0003")
    (tmp_path / "last_checkpoint").write_text("checkpoint_0001.pth")
    saved(tmp_path, "0001_iter00000007", keep=2)
    assert [path.name for path in sorted(tmp_path.glob("*.pth"))] == [
        "checkpoint_0001.pth",
        "checkpoint_0001_iter00000007.pth",
        "checkpoint_0002.pth",
        "checkpoint_0003.pth",
    ]
    saved(tmp_path, "0003", keep=2)
    names = [path.name for path in sorted(tmp_path.glob("*.pth"))]
    assert names == ["checkpoint_0002.pth", "checkpoint_0003.pth"]
    CheckpointFolder(tmp_path).prune(keep=1)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_0003.pth"]


class _RunsCommand:
    def __reduce__(self):
        return (open, ("pwned", "w"))


def test_load_checkpoint__code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": _RunsCommand()}, tmp_path / "evil.pth")
    (tmp_path / "evil2.pth").write_bytes(pickle.dumps(_RunsCommand()))
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(InputError, match=r"evil2?\.pth"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_load_checkpoint__damaged__one_sentence(tmp_path, damage):
    path = tmp_path / "c.pth"
    torch.save({"x": torch.zeros(1000)}, path)
    content = {"truncated": path.read_bytes()[:700], "text": b"hello\n", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_load_checkpoint__missing_folder_or_other_object__error(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(InputError, match="truncated or damaged"):
        load_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth")
