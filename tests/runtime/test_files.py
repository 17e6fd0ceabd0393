"""Files are whole or not there.

Went red under: writing to the target directly instead of the temporary file; leaving the temporary
    file behind; no look for leftovers; the parent of a new folder not synced; no lock on the
    temporary file.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from moco_transfer.runtime.errors import InputError, MissingFileError
from moco_transfer.runtime.files import atomic_path, atomic_write_text, sha256_of


def test_atomic_path__failure_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as tmp:
        tmp.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_path__kill_in_the_middle_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    program = (
        "import os, signal\nfrom moco_transfer.runtime.files import atomic_path\nwith"
        f" atomic_path({str(target)!r}) as tmp:\n    tmp.write_text('half')\n   "
        " os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=os.getcwd()).returncode == -9
    assert target.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    # The next process to write there removes what is left, but nothing that has another name or
    # that is being written.
    for name in (".a.txt.tmp", "b.12345678.tmp"):
        (tmp_path / name).touch()
    program = (
        "import os\nfrom moco_transfer.runtime.files import _remove_leftovers, atomic_path\n"
        f"with atomic_path({str(tmp_path / 'c')!r}) as tmp:\n    tmp.write_text('new')\n"
        f"    _remove_leftovers.cache_clear()\n    with atomic_path({str(target)!r}):\n"
        f"        print(sorted(set(os.listdir({str(tmp_path)!r})) - {{tmp.name}}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.count(".a.txt.") == 2, done
    assert sorted(os.listdir(tmp_path)) == [".a.txt.tmp", "a.txt", "b.12345678.tmp", "c"]


def test_atomic_write__a_new_folder_lasts_through_a_power_cut(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.path.realpath(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    atomic_write_text(tmp_path / "one" / "two" / "a", "x")
    if os.path.exists("/proc/self/fd"):
        expected = [str(tmp_path), str(tmp_path / "one"), str(tmp_path / "one" / "two")]
        assert sorted(path for path in synced if os.path.isdir(path)) == expected


def test_atomic_write__new_file_has_the_permissions_open_would_give(tmp_path):
    atomic_write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_atomic_write__folder_as_target__error(tmp_path):
    with pytest.raises(InputError, match="is a folder, expected the name of a file"):
        atomic_write_text(tmp_path, "x")


def test_sha256__equals_hashlib(tmp_path):
    (tmp_path / "a").write_bytes(b"moco" * 1000000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"moco" * 1000000).hexdigest()
    with pytest.raises(MissingFileError, match="does not exist"):
        sha256_of(tmp_path / "b")
