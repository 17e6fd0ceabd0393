"""A power cut: what was not synced is gone.

Of a file its content of the last fsync stays, none without one. Of a folder the names of the last
fsync stay; or, in the other form, as journals have it, all names while contents are those of the
last fsync. States are written just before and after each fsync, rename and removal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Durable:
    """What a power cut would leave of a folder."""

    def __init__(self, root: Path, states: Path, wanted: set[int] | None) -> None:
        self.root, self.states, self.wanted = root, states, wanted
        self.contents: dict[tuple[int, int], bytes] = {}  # of synced files, by inode
        self.names: dict[tuple[int, int], dict[str, tuple[int, int]]] = {}  # of synced folders
        self.held: list[int] = []  # open, so that no inode is given to another file
        self.promised: dict[str, Any] = {}
        self.moment = 0
        states.mkdir()
        root.parent.mkdir(exist_ok=True)
        self.above = {name: self.key(root.parent / name) for name in os.listdir(root.parent)}
        if root.exists():  # what an earlier run wrote is durable
            for folder, _, files in os.walk(root):
                for name in files:
                    self.synced(os.path.join(folder, name))
                self.synced(folder)

    def key(self, path: str | Path) -> tuple[int, int]:
        """Return what identifies a file or folder, and keep it so."""
        self.held.append(fsync_free_open(path))
        status = os.fstat(self.held[-1])
        return status.st_dev, status.st_ino

    def synced(self, path: str) -> None:
        """Note that a file or folder was synced."""
        if os.path.isdir(path):
            entries = {e.name: self.key(e.path) for e in os.scandir(path) if not e.is_symlink()}
            if os.path.realpath(path) == os.path.realpath(self.root.parent):
                self.above = entries
            self.names[self.key(path)] = entries
        else:
            self.contents[self.key(path)] = Path(path).read_bytes()

    def cut(self) -> None:
        """Write both forms of what would be left now, if this moment is wanted."""
        if self.wanted is None or self.moment in self.wanted:
            for form in ("names", "contents"):
                state = self.states / f"{self.moment:05d}_{form}"
                state.mkdir()
                if form == "contents" and self.root.exists():
                    self.write_contents(state / "out")
                elif form == "names" and "out" in self.above and self.root.exists():
                    self.write_names(self.above[self.root.name], state / "out")
                (state / "promised.json").write_text(json.dumps(self.promised))
        self.moment += 1

    def write_contents(self, target: Path) -> None:
        """Write all names, with the contents that were synced."""
        for folder, _, files in os.walk(self.root):
            there = target / os.path.relpath(folder, self.root)
            there.mkdir(parents=True, exist_ok=True)
            for name in files:
                data = self.contents.get(self.key(os.path.join(folder, name)), b"")
                (there / name).write_bytes(data)

    def write_names(self, folder: tuple[int, int], target: Path) -> None:
        """Write a folder's synced names with their synced contents."""
        target.mkdir(parents=True)
        for name, key in self.names.get(folder, {}).items():
            if key in self.contents:
                (target / name).write_bytes(self.contents[key])
            elif key in self.names or self.is_folder(key):
                self.write_names(key, target / name)
            else:
                (target / name).write_bytes(b"")

    def is_folder(self, key: tuple[int, int]) -> bool:
        """Return whether a held inode is a folder."""
        import stat

        found = (os.fstat(fd) for fd in self.held)
        return any((s.st_dev, s.st_ino) == key and stat.S_ISDIR(s.st_mode) for s in found)


def fsync_free_open(path: str | Path) -> int:
    """Open without a right but to look."""
    return os.open(path, os.O_PATH | os.O_NOFOLLOW)


def recording(root: Path, states: Path, trials: float, chosen: float) -> Callable[[], None]:
    """Return what records, in the process that calls it, the states of about ``trials`` moments of
    a run; ``chosen`` in [0, 1) says which.
    """

    def before() -> None:
        import random

        from moco_transfer.runtime.checkpoint import CheckpointFolder
        from moco_transfer.runtime.machine import raise_file_limit

        raise_file_limit()
        dice = random.Random(chosen)
        wanted = {n for n in range(100_000) if dice.random() < trials / 2 / MOMENTS}
        wanted.add(int(10 * chosen))  # one at least
        durable = Durable(root, states, wanted)
        below = str(root.resolve().parent)

        def watched(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **more: Any) -> Any:
                first = args[0]
                path = f"/proc/self/fd/{first}" if isinstance(first, int) else first
                path = os.path.realpath(path)
                if not path.startswith(below):
                    return function(*args, **more)
                durable.cut()
                result = function(*args, **more)
                if function.__name__ == "fsync":
                    durable.synced(path)
                return result

            return call

        for name in ("fsync", "replace", "rename", "unlink", "remove"):
            setattr(os, name, watched(getattr(os, name)))
        save = CheckpointFolder.save

        def promising(self: CheckpointFolder, state: dict[str, Any], name: str) -> Path:
            path = save(self, state, name)
            durable.promised["checkpoint"] = path.name
            durable.cut()
            return path

        CheckpointFolder.save = promising  # type: ignore[method-assign]

    return before


MOMENTS = 60  # of a run, about
