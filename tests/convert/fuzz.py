"""Feed damaged checkpoints to the converter: ``python tests/convert/fuzz.py COUNT [SEED]``;
test_fuzz.py runs it.

Every file must be converted or refused with an InputError. Anything else, a crash of the process,
more than 1 GB of memory or an attempt to run a program, to open a connection or to write outside of
the folder ends with another status than 0.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import runpy
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

from moco_transfer.convert import convert_checkpoint, inspect, load_backbone
from moco_transfer.runtime.errors import InputError

FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pty.spawn",
    "ctypes.dlopen",
)
MAX_MEMORY_KB = 1_000_000


def seeds(folder: Path) -> list[bytes]:
    """Return small files of each container: a ResNet-18 with one number per tensor, and a handful
    of arrays.
    """
    made = runpy.run_path(str(Path(__file__).with_name("networks.py")))
    state = made["one_number_each"](made["resnet_state"]("resnet18"))
    few = {name: torch.ones(tensor.shape[:1]) for name, tensor in list(state.items())[:12]}
    arrays = {name: tensor.numpy() for name, tensor in few.items()}
    files = []
    for content in (
        {"state_dict": {f"module.encoder_q.{name}": t for name, t in state.items()}, "epoch": 3},
        {"model": few, "n": 1.5},
    ):
        for legacy in (False, True):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
            files.append(buffer.getvalue())
    files += [
        pickle.dumps({"model": arrays, "__author__": "me"}, protocol=protocol)
        for protocol in (0, 2, 4, 5)
    ]
    save_file({n: t.contiguous() for n, t in few.items()}, folder / "seed", {"format": "pt"})
    return [*files, (folder / "seed").read_bytes()]


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Return a file with some of its bytes changed, taken out, doubled or cut off at the end."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        place = dice.randrange(max(1, len(out)))
        out = out or bytearray(1)
        kind = dice.randrange(6)
        if kind == 0:
            out[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            out[place] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        elif kind == 2:
            out[place : place + 4] = dice.choice(
                (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0")
            )
        elif kind == 3:
            del out[place : place + dice.randrange(1, 9)]
        elif kind == 4:
            out[place:place] = out[place : place + dice.randrange(1, 33)]
        elif len(out) > 40:
            del out[dice.randrange(20, len(out)) :]
    return bytes(out) or b"\x80"


def mutate_inside(data: bytes, dice: random.Random) -> bytes:
    """Return a zip archive of torch whose pickle is damaged and whose checksums are right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(
                info.filename,
                mutate(content, dice) if info.filename.endswith("data.pkl") else content,
            )
    return buffer.getvalue()


def largest_memory_kb() -> int:
    """Return the largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if (
        status.exists()
    ):  # Linux: ru_maxrss would count the memory of the process that started this one
        return int(
            next(
                line for line in status.read_text().splitlines() if line.startswith("VmHWM")
            ).split()[1]
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def watch(event: str, args: tuple) -> None:
    """Stop the process as soon as anything tries to run a program or to reach the network."""
    if event.startswith(FORBIDDEN):
        os.write(2, f"forbidden: {event} {args!r}\n".encode())
        os._exit(3)


def main() -> int:
    """Run COUNT files; returns the exit status."""
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    dice = random.Random(seed)
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = seeds(folder)
        source, target = folder / "fuzz.pth", folder / "out.pkl"
        target.write_bytes(b"earlier")
        sys.addaudithook(watch)
        for number in range(count):
            if number % 1000 == 999:
                print(
                    f"{number + 1} of {count} files: {dict(results)}", file=sys.stderr, flush=True
                )
            data = files[number % len(files)]
            inside = data.startswith(b"PK") and dice.random() < 0.7
            source.write_bytes(mutate_inside(data, dice) if inside else mutate(data, dice))
            for call in (
                lambda path: inspect(path).table(),
                load_backbone,
                lambda path: convert_checkpoint(path, target, verify=False),
            ):
                before = target.stat()
                try:
                    call(source)
                    results["read"] += 1
                except InputError as error:
                    results["refused"] += 1
                    after = target.stat()
                    if "\n" in str(error) or (after.st_ino, after.st_mtime_ns) != (
                        before.st_ino,
                        before.st_mtime_ns,
                    ):
                        raise AssertionError(
                            f"file {number}: the destination was touched, or more than a line:"
                            f" {error}"
                        ) from error
    memory = largest_memory_kb()
    print(f"{count} files, seed {seed}: {dict(results)}, largest memory {memory / 1e6:.2f} GB")
    return 0 if memory < MAX_MEMORY_KB else 4


if __name__ == "__main__":
    sys.exit(main())
