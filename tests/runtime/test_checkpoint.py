"""Checkpoints: found again, safe to read, and clear when they are not.

Went red under: deleting the newest file instead of the oldest; weights_only=False.
"""

from __future__ import annotations

import pickle

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
