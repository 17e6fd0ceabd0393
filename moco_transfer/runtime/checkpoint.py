"""Checkpoints of a run: written whole or not at all, found again by ``last_checkpoint``.

A checkpoint is a ``torch.save`` of plain containers, numbers, strings and tensors, so that it loads
with ``weights_only=True`` and runs no code. ``checkpoint_0200.pth`` holds the state after 200
finished epochs (pre-training) or iterations (fine-tuning).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .distributed import is_main_process
from .errors import Faults, InputError, MissingFileError, damaged, printable
from .files import atomic_path, atomic_write_text, regular
from .safe_pickle import ForbiddenNameError, StandIn

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"
"""The text file that holds the name of the newest checkpoint."""


class CheckpointFolder:
    """The checkpoints in OUTPUT_DIR, of which the ``keep`` newest stay (0: all)."""

    def __init__(self, folder: str | Path, *, keep: int = 0) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: dict[str, Any], name: str) -> Path:
        """Write ``checkpoint_<name>.pth``, point ``last_checkpoint`` at it, return its path.

        ``name``: epochs or iterations finished, with leading zeros so that names sort by age.
        """
        path = self.write(state, f"checkpoint_{name}.pth")
        atomic_write_text(self.folder / LAST, path.name + "\n")
        self.prune(self.keep)
        return path

    def resume_from(self, path: Path | None) -> None:
        """Point ``last_checkpoint`` at the checkpoint that a run resumes from, where a damaged one
        names another.
        """
        if path is None or not is_main_process():
            return
        with contextlib.suppress(InputError):
            if self.last() == path:
                return
        atomic_write_text(self.folder / LAST, path.name + "\n")

    def prune(self, keep: int) -> None:
        """Remove all older than the last checkpoint but ``keep`` - 1 (0: nothing)."""
        last = self.last()
        older = [each for each in self._by_age() if last and each.name < last.name]
        for old in older[: -(keep - 1) or None] if keep else []:
            old.unlink(missing_ok=True)

    def write(self, state: dict[str, Any], file_name: str) -> Path:
        """Write a file that is no step of the run, such as ``best.pth``; return its path."""
        path = self.folder / file_name
        # Given a path, torch's writer would not say why it failed.
        with atomic_path(path) as tmp, open(tmp, "wb") as file:
            torch.save(state, file)
        return path

    def last(self) -> Path | None:
        """Return what ``last_checkpoint`` names, None without it; InputError if that is no file."""
        path = self._named()
        if path is not None and not path.is_file():
            raise MissingFileError(
                f"{self.folder / LAST} names {path.name}, which is not in {self.folder}. Put the"
                " file back, or name another checkpoint there."
            )
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the checkpoint to resume from and its content, None without any: what
        ``last_checkpoint`` names or, with a warning, the newest before it that is whole.

        Raises:
            InputError: If there are checkpoints, and none of them is whole.
        """
        faults, found = Faults(), self._by_age()[::-1]
        named = faults.check(self._named)
        if named is not None:
            older = [path for path in found if path.name < named.name]
            # Without the file: the name may be what is damaged.
            found = [named, *older] if faults.check(self.last) else older or found
        for path in found:
            state = faults.check(functools.partial(load_checkpoint, path))
            if state is not None:
                for fault in faults.errors:
                    logger.warning("%s Resuming from %s, the one before.", fault, path.name)
                return path, state
        if faults.errors:
            raise faults.errors[0]
        return None

    def _named(self) -> Path | None:
        pointer = self.folder / LAST
        if not pointer.exists():
            return None
        name = regular(pointer).read_bytes().decode(errors="replace").strip()
        if not name.isprintable() or name != Path(name).name:
            raise damaged(pointer, f"it names {name[:80]!r}")
        return self.folder / name

    def _by_age(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint_*.pth"))

    @contextlib.contextmanager
    def advising(self, remedy: str) -> Iterator[None]:
        """Add the newest checkpoint and a remedy to a FloatingPointError of the block."""
        try:
            yield
        except FloatingPointError as error:
            last = self.last() or "none yet"
            raise FloatingPointError(f"{error} Last checkpoint: {last}. {remedy}") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the dictionary in a file that ``torch.save`` wrote; raises as :func:`torch_load`, and
    InputError if a checksum is wrong: torch would load a changed weight without a word.
    """
    if is_zip(path) and (fault := zip_fault(path)):
        raise damaged(path, fault)
    state = torch_load(path)
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, expected a dictionary.")
    return state


def torch_load(
    path: str | Path, *, mmap: bool = False, resolve: Callable[[str], Any] | None = None
) -> Any:
    """Return what ``torch.save`` wrote, on the CPU; no code in it is run.

    ``resolve`` gives what stands in for a class or function of a full name, such as
    ``safe_pickle.stand_in``; without it a file that names one is refused.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is truncated or damaged, holds objects other than tensors, plain
            containers and what ``resolve`` knows, or is of a kind that torch cannot read.
    """
    known: dict[str, Any] = {}
    while True:  # once more for each name that the file asks for
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a damaged byte may look like another version
                with torch.serialization.safe_globals([(v, name) for name, v in known.items()]):
                    return torch.load(  # noqa: TID251 - here, with weights_only
                        str(path), map_location="cpu", weights_only=True, mmap=mmap
                    )
        except FileNotFoundError as error:
            raise MissingFileError(f"Checkpoint {path} does not exist.") from error
        except Exception as error:  # torch's reader raises any kind for a damaged file
            if resolve is None or not _learn(path, error, known, resolve):
                raise _unreadable(path, error) from error


_NAMED = (r"GLOBAL (\S+)", r"[Uu]nsupported (?!operand)\S+ (\S+)")
_FILLED = re.compile(r"Can only (\w+) .*but got <class '(\S+)'>")


def _learn(
    path: str | Path, error: Exception, known: dict[str, Any], resolve: Callable[[str], Any]
) -> bool:
    """Add to ``known`` what torch's reader stopped at: a name, or a container to be filled."""
    if match := _FILLED.search(str(error)):  # torch fills its own kinds of containers alone
        maker = _maker_of(OrderedDict if match[1].startswith("SETITEM") else list)
        is_new = issubclass(known.get(match[2], object), StandIn)
        known |= {match[2]: maker} if is_new else {}
        return is_new
    name = _asked_for(error)
    if name is None or name in known:
        return False
    try:
        known[name] = resolve(name)
    except ForbiddenNameError as refused:
        raise _unreadable(path, refused) from None
    return True


def _maker_of(kind: type) -> type:
    """Return a class whose objects are of another one."""
    return type("Maker", (), {"__new__": lambda *_args, **_options: kind()})


def _asked_for(error: Exception) -> str | None:
    """Return the full name that was refused, None for another error."""
    reason = str(error)
    if isinstance(error, ForbiddenNameError):
        return reason
    named = next(filter(None, (re.search(pattern, reason) for pattern in _NAMED)), None)
    if named is None or not isinstance(error, pickle.UnpicklingError):
        return None
    return named[1] if "." in named[1] else f"builtins.{named[1]}"


def _unreadable(path: str | Path, error: Exception) -> InputError:
    reason, name = str(error), _asked_for(error)
    if name:
        return InputError(
            f"{path} asks for {name[:100]!r}, which is neither a tensor nor a plain value, and was"
            " not run; save its state_dict() alone with torch.save."
        )
    reason = reason.partition("WeightsUnpickler error: ")[2] or reason
    # Before 1.6 the source of a pickled model's classes was saved too, as a persistent object.
    is_model, is_other = "persistent_load of storage" in reason, "Unsupported operand" in reason
    if not is_model and zip_fault(path) is not None:
        return damaged(path, reason)
    first = printable((reason.strip().splitlines() or [type(error).__name__])[0][:120])
    what = "in another pickle protocol than 2" if is_other else "with more than tensors"
    call = f"torch.load({str(path)!r}, weights_only=False)"
    call = call if is_other else f"{call}.state_dict()"
    return InputError(
        f"{path} is not damaged, but was saved {what} ({first}). If you trust it and have its code,"
        f" save its tensors: torch.save({call}, 'state_dict.pth')"
    )


def is_zip(path: str | Path) -> bool:
    """Return whether a file is a zip archive, perhaps a damaged one; InputError for a pipe."""
    try:
        return zipfile.is_zipfile(regular(path))
    except zipfile.BadZipFile:  # of a damaged table, before Python 3.14
        return True
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def zip_fault(path: str | Path) -> str | None:
    """Return what is wrong with a zip archive, None for a whole one; every byte is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, OSError) as error:
        return str(error) or type(error).__name__
    return f"its record {broken!r} fails its checksum" if broken else None
