"""Feed damaged and hostile files to every reader: ``python tests/hostile/readers.py COUNT [SEED]``;
test_hostile.py runs it. tests/convert/fuzz.py does so for the converter.

Binary files are mutated; of texts half are mutated, half made by hypothesis (structures.py). Each
file must be read or refused with a sentence, within ten seconds and 3 GB (an image with as many
pixels as are accepted takes 2.5); a program, a connection or another exception ends the process
with a status of its own. The last lines are a table.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pickle
import random
import runpy
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_api
from safetensors.torch import save
from structures import MARKS, feed, strategies

from moco_transfer.config import load_detection_config, load_pretrain_config
from moco_transfer.convert.read import read_checkpoint
from moco_transfer.data.annotations.coco import load_json, read_coco
from moco_transfer.data.annotations.faults import Fault
from moco_transfer.data.annotations.masks import read_mask
from moco_transfer.data.annotations.voc import read_voc
from moco_transfer.data.images import tar_shards
from moco_transfer.data.images.decode import UNREADABLE, decode_pixels, read_size
from moco_transfer.report import build_tables, read_runs, render_csv, render_markdown
from moco_transfer.report.html.page import render_page
from moco_transfer.runtime.checkpoint import CheckpointFolder, load_checkpoint
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.metrics import read_metrics

FUZZ = runpy.run_path(str(Path(__file__).parents[1] / "convert" / "fuzz.py"))
REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS, MEMORY_KB = 10, 3_000_000
COLUMNS = ("read", "refused")
Reader = Callable[[Path], object]


def image_files() -> list[bytes]:
    """Return small images of each kind, and bombs."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    files = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        files.append(buffer.getvalue())
    bomb = bytearray(files[1])
    bomb[16:24] = b"\0\x01\0\0" * 2  # a PNG of 65536 x 65536 px
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return [*files, bytes(bomb), buffer.getvalue()]


def coco_file(folder: Path) -> bytes:
    """Return annotations with polygons, both forms of RLE and keypoints, and write the images."""
    rle = mask_api.encode(np.asfortranarray(np.eye(12, 10, dtype=np.uint8)))
    masks: list[Any] = [[[1, 1, 8, 1, 8, 9]], {"size": [12, 10], "counts": rle["counts"].decode()}]
    masks.append({"size": [12, 10], "counts": [100, 10, 10]})
    annotations = []
    for number, mask in enumerate(masks):
        about = {"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 1, 7, 8], "area": 56}
        points = {"keypoints": [1, 1, 2, 3, 3, 1], "num_keypoints": 2, "iscrowd": number == 2}
        annotations.append({**about, **points, "segmentation": mask})
    Image.new("RGB", (10, 12)).save(folder / "1.png")
    images = [{"id": 1, "file_name": "1.png", "width": 10, "height": 12}]
    categories = [{"id": 1, "name": "a", "keypoints": ["x", "y"], "skeleton": [[1, 2]]}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content).encode()


def readers(folder: Path) -> dict[str, tuple[list[bytes], str, Reader]]:
    """Return each reader's good files, the name that it reads and the call."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(3)}, "epoch": 1, "names": ["x"]}, buffer)
    state = buffer.getvalue()
    arrays = {"model": {"a": np.ones(3, np.float32)}, "__author__": "me"}
    pickled = pickle.dumps(arrays, protocol=2)
    safetensors = save({"conv1.weight": torch.ones(3)}, {"format": "pt"})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (
            ("a.png", image_files()[1]),
            ("a.cls", b"1"),
            ("b.jpg", image_files()[0]),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    shard = buffer.getvalue()
    (folder / "s.tar").write_bytes(shard)
    masks = [a["segmentation"] for a in json.loads(coco_file(folder))["annotations"]]
    rles = [json.dumps(mask).encode() for mask in masks[1:]]
    tar_shards._index_and_keep(folder / "s.tar")
    index = (folder / "s.tar.index.npz").read_bytes()
    voc = folder / "voc"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / part).mkdir(parents=True)
    Image.new("RGB", (10, 12)).save(voc / "JPEGImages" / "1.jpg")
    (voc / "ImageSets" / "Main" / "t.txt").write_text("1\n")
    xml = b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "cat">]><annotation>
        <filename>1.jpg</filename>
        <size><width>10</width><height>12</height><depth>3</depth></size><object><name>&b;</name>
        <difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6.5</ymax>
        </bndbox></object></annotation>"""
    run = next((REPOSITORY / "docs" / "results" / "cells" / "cells").glob("*/results.json"))
    results = run.read_bytes()
    metrics = run.with_name("metrics.json").read_bytes()[:2000]
    configs = [
        (REPOSITORY / "configs" / name).read_bytes() for name in ("pretrain/demo_moco.yaml",)
    ]
    detection = (REPOSITORY / "configs" / "detection" / "own_R_18_FPN_small.yaml").read_bytes()
    whole = run.with_name("config.yaml").read_bytes()

    def page(file: Path) -> None:
        records, problems = read_runs([file.parent])
        tables = build_tables(records)
        html = render_page(tables, problems, pretraining=[], folders=[file.parent])
        html.encode()
        for mark in MARKS[:2]:
            assert mark not in html, "HTML of a name reached the page"

    def table(file: Path) -> None:
        records, problems = read_runs([file.parent])
        tables = build_tables(records)
        (render_markdown(tables, problems) + render_csv(tables)).encode()

    def pointer(file: Path) -> None:
        CheckpointFolder(file.parent).newest()

    def rle(file: Path) -> None:
        about = {"height": 12, "width": 10, "file_name": "1.png"}
        mask = read_mask(load_json(file), about)
        if isinstance(mask, dict):
            assert mask_api.decode(mask).shape == (12, 10)

    def voc_of(file: Path) -> None:
        read_voc(file.parents[1], "t", ("cat",))

    def image(file: Path) -> None:
        decode_pixels(file.read_bytes())
        read_size(str(file))

    return {
        "checkpoint": ([state], "c.pth", load_checkpoint),
        "safetensors": ([safetensors], "m.safetensors", read_checkpoint),
        "pickle": ([pickled], "m.pkl", read_checkpoint),
        "pointer": ([b"checkpoint_0001.pth\n"], "run/last_checkpoint", pointer),
        "shard": ([shard], "t.tar", tar_shards.index_shard),
        "index": ([index], "s.tar.index.npz", lambda _: tar_shards._read(folder / "s.tar")),
        "xml": ([xml], "voc/Annotations/1.xml", voc_of),
        "rle": (rles, "rle.json", rle),
        "coco": ([coco_file(folder)], "a.json", lambda file: read_coco(file, folder)),
        "image": (image_files(), "i.png", image),
        "pretrain config": (configs, "p.yaml", load_pretrain_config),
        "detection config": ([detection, whole], "d.yaml", load_detection_config),
        "results": ([results], "r/results.json", table),
        "page": ([results], f"{MARKS[1]}/results.json", page),
        "metrics": ([metrics], "m.json", read_metrics),
    }


def poison(data: bytes, dice: random.Random) -> bytes:
    """Return a text file with a string, number or bracket in it replaced by a hostile one."""
    hostile = [json.dumps(mark).encode() for mark in MARKS]
    hostile += [b"1" * 5000, b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b"[" * 5000, b'""']
    hostile += [
        b"&a",
        b"*a",
        b"&b;&b;&b;",
        b"<a>" * 3000,
        b"\xff\xfe",
        b"\0",
        b'"\\ud800"',
        b"true",
    ]
    places = [i for i, c in enumerate(data) if c in b'":,[{<>0123456789']
    if not places:
        return dice.choice(hostile)
    start = dice.choice(places)
    stop = min(len(data), start + dice.choice((0, 1, 2, 8)))
    return data[:start] + dice.choice(hostile) + data[stop:]


def too_long(signum: int, frame: object) -> None:
    """Raise where a reader takes too long."""
    raise TimeoutError(f"more than {SECONDS} s")


class Trial:
    """A reader and what became of the files that it was given."""

    def __init__(self, kind: str, file: Path, read: Reader) -> None:
        self.kind, self.file, self.read = kind, file, read
        self.refusals = (InputError, Fault, *(UNREADABLE if kind == "image" else ()))
        self.results: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.slowest = 0.0  # s of CPU
        file.parent.mkdir(parents=True, exist_ok=True)

    def take(self, data: bytes) -> None:
        """Let the reader read a file, and note how it ends."""
        self.file.write_bytes(data)
        since = time.process_time()
        signal.alarm(SECONDS)
        try:
            self.read(self.file)
            self.results["read"] += 1
        except self.refusals as error:
            signal.alarm(0)
            self.results["refused"] += 1
            is_list = "things to fix" in str(error)
            if isinstance(error, InputError) and "\n" in str(error) and not is_list:
                self.faults[f"more than a line: {str(error)[:200]!r}"] += 1
        except BaseException as error:
            signal.alarm(0)
            where = traceback.extract_tb(error.__traceback__)
            ours = [f for f in where if "moco_transfer" in f.filename] or where
            what = f"{type(error).__name__}: {str(error)[:80]!r}"
            key = f"{what} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
            if not self.faults[key]:
                with contextlib.suppress(OSError):
                    print(f"{self.kind}: {key}: {data[:4000]!r:.200}", file=sys.stderr, flush=True)
            self.faults[key] += 1
        signal.alarm(0)
        self.slowest = max(self.slowest, time.process_time() - since)

    def row(self) -> str:
        """Return a line of the table."""
        counts = (self.results.total() + self.faults.total(), *map(self.results.get, COLUMNS))
        numbers = "".join(f"{count or 0:>10,}" for count in counts)
        return f"{self.kind:18}{numbers}{self.faults.total():>10}{1000 * self.slowest:>12,.0f}"


def main() -> int:
    """Run COUNT files for each reader; returns the exit status."""
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    only = sys.argv[3:]
    logging.getLogger("moco_transfer").addHandler(logging.NullHandler())
    logging.getLogger("moco_transfer").propagate = False
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, too_long)
    rows, faults = [], Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        known = readers(Path(name))
        made = strategies({kind: files[0] for kind, (files, *_) in known.items()})
        sys.addaudithook(FUZZ["watch"])
        for kind in only or known:
            files, target, read = known[kind]
            trial, dice = Trial(kind, Path(name) / target, read), random.Random(f"{seed} {kind}")
            half = count // 2 if kind in made else 0
            for index in range(count - half):
                change = poison if kind in made and dice.random() < 0.6 else FUZZ["mutate"]
                trial.take(change(files[index % len(files)], dice))
            if half:
                feed(made[kind], half, seed, trial.take)
            rows.append(trial.row())
            faults.update({f"{kind}: {fault}": n for fault, n in trial.faults.items()})
            print(rows[-1], flush=True)
    memory = FUZZ["largest_memory_kb"]()
    for fault, times in faults.items():
        print(f"FAULT {fault} ({times} times)")
    head = "".join(f"{word:>10}" for word in ("inputs", *COLUMNS, "faults"))
    print(f"{'':18}{head}  slowest, ms", *rows, sep="\n")
    print(f"faults {len(faults)}, largest memory {memory / 1e6:.2f} GB")
    return 0 if not faults and memory < MEMORY_KB else 4


if __name__ == "__main__":
    sys.exit(main())
