"""The runs of the fault bench, of a second each: what starts them, what they compute, and what of
theirs counts as saved.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generated_images import write_pool, write_voc_scenes
from PIL import Image

from moco_transfer.runtime.checkpoint import CheckpointFolder

TINY_PRETRAIN = """DATA.IMAGE_SIZE 16 DATA.BATCH_SIZE_TOTAL 8 MOCO.QUEUE_SIZE 20
    MOCO.BN_GROUP_SIZE 4 SOLVER.EPOCHS 4 SOLVER.STEPS () TRAIN.LOG_PERIOD 2 TRAIN.PRECISION fp32
    TRAIN.CHECKPOINT_PERIOD_ITERS 2 LOGGERS tensorboard""".split()
# Not AMP: each run measures whether bf16 pays. Narrow, as checkpoints take time.
TINY_TRAIN = """SOLVER.IMS_PER_BATCH 2 SOLVER.AMP.ENABLED False
    SOLVER.MAX_ITER 4 SOLVER.STEPS 3 SOLVER.CHECKPOINT_PERIOD 1 TEST.PRECISE_BN.NUM_ITER 1
    INPUT.MIN_SIZE_TRAIN 64 INPUT.MIN_SIZE_TEST 64 SEED 0
    MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 4
    MODEL.RESNETS.RES2_OUT_CHANNELS 16""".split()
FPN = "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16".split()
FEW = """MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.POST_NMS_TOPK_TEST 5
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8""".split()
# A wall clock's, or what a log period has seen.
NOT_COMPUTED = "time data_time images_per_sec data_wait_share knn_sec wall_sec eta".split()


def digest(value: Any) -> str:
    """Return a hash of tensors, numbers and containers, to the last bit."""
    found = hashlib.sha256()

    def add(each: Any) -> None:
        if isinstance(each, torch.Tensor):
            found.update(repr((each.dtype, each.shape)).encode())
            found.update(each.contiguous().numpy().tobytes())
        elif isinstance(each, dict):
            for key in sorted(each, key=str):
                found.update(repr(key).encode())
                add(each[key])
        elif isinstance(each, (list, tuple)):
            found.update(b"[")
            for one in each:
                add(one)
        else:
            found.update(repr(each).encode())

    add(value)
    return found.hexdigest()


def sha(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without(record: dict, *names: str) -> dict:
    """Return a record without what a clock says."""
    return {k: v for k, v in record.items() if k not in (*NOT_COMPUTED, *names)}


def rows(folder: Path, upto: int = 1 << 40) -> list[dict]:
    """Return the lines of metrics.json up to an iteration."""
    lines = (folder / "metrics.json").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["iteration"] <= upto]


def last_state(folder: Path) -> dict | None:
    """Return what the newest checkpoint holds, None without one."""
    found = CheckpointFolder(folder).newest()
    return found[1] if found else None


def iteration_of(state: dict) -> int:
    """Return how many iterations a checkpoint has finished, or epochs."""
    return state["iteration"] if "iteration" in state else state["epoch"]


@dataclass(frozen=True)
class Job:
    """A verb, by its words; ``{out}`` is where it writes."""

    name: str
    words: list[str]
    result: Callable[[Path], dict]  # what it computed
    saved: Callable[[Path], dict]  # what it promises to keep, at any moment
    resume: list[str] = field(default_factory=list)
    prepare: Callable[[Path], None] = lambda out: None
    weight: float = 1.0  # of trials on the disk, where others write the same files

    def argv(self, out: Path, *, resume: bool = False) -> list[str]:
        """Return the words of a run."""
        verb, *others = [word.replace("{out}", str(out)) for word in self.words]
        return [verb, *(self.resume if resume else []), *others]


def run_result(folder: Path) -> dict:
    """Return what a run in OUTPUT_DIR has computed."""
    state = last_state(folder)
    found: dict[str, Any] = {name: digest(value) for name, value in (state or {}).items()}
    found["rows"] = [without(row) for row in rows(folder)]
    for file in sorted(folder.glob("predictions_*.json")):
        found[file.name] = sha(file)
    if (folder / "results.json").exists():
        record = json.loads((folder / "results.json").read_text())
        found["results"] = without(record, "command")  # which has --resume
    return found


def run_saved(folder: Path) -> dict:
    """Return the newest checkpoint's content and the lines before it, with their times: a run that
    computed them again would have others.
    """
    state = last_state(folder)
    if state is None:
        return {}
    done = iteration_of(state)
    if "step" in state:  # linear: rows have iterations, checkpoints epochs
        done = state["epoch"] * 3
    return {"iteration": done, "rows": [json.dumps(row) for row in rows(folder, done)]}


def pack_result(folder: Path) -> dict:
    """Return every byte of a pack but the index's, which holds the shards' times."""
    names = [p.name for p in sorted(folder.iterdir()) if not p.name.endswith(".npz")]
    return {name: sha(folder / name) for name in names}


def pack_saved(folder: Path) -> dict:
    """Return the shards that pack.json lists, as they lie on the disk."""
    about = folder / "pack.json"
    if not about.exists():
        return {}
    urls = [entry["url"] for entry in json.loads(about.read_text())["shardlist"]]
    return {url: (folder / url).stat().st_ino for url in urls}


def one_file(name: str) -> tuple[Callable[[Path], dict], Callable[[Path], dict]]:
    """Return result and saved state of a verb that writes one file, which was there before."""

    def result(out: Path) -> dict:
        return {name: sha(out / name)}

    def saved(out: Path) -> dict:
        assert (out / name).stat().st_size > 5, "the file that was there is gone"
        return {}

    return result, saved


def benchmark_result(folder: Path) -> dict:
    """Return what each run of a matrix computed, and its table."""
    found = {str(p.parent): run_result(p.parent) for p in sorted(folder.rglob("results.json"))}
    return {**found, "table": (folder / "table.md").read_text()}


def benchmark_saved(folder: Path) -> dict:
    """Return the complete runs, as they lie on the disk, and what each has saved."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("results.json")):
        found[str(file)] = file.stat().st_ino
    for file in sorted(folder.rglob("last_checkpoint")):
        found[str(file)] = run_saved(file.parent)
    return found


def write_coco(folder: Path) -> str:
    """Write four images of two rectangles, with boxes, masks and keypoints."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(1, 5):
        pixels = np.full((64, 80, 3), 120, np.uint8)
        for category in (1, 2):
            w, h = (int(side) for side in rng.integers(18, 36, 2))
            x, y = int(rng.integers(0, 80 - w)), int(rng.integers(0, 64 - h))
            pixels[y : y + h, x : x + w] = (220, 60, 50) if category == 1 else (50, 90, 220)
            about = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            points = [x, y, 2, x + w - 1, y, 2, x + w // 2, y + h // 2, 2]
            shape = {"bbox": [x, y, w, h], "area": w * h, "segmentation": [polygon]}
            shape |= {"keypoints": points, "num_keypoints": 3, "iscrowd": 0}
            annotations.append({**about, **shape})
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 64})
    points = {"keypoints": ["a", "b", "c"], "skeleton": [[1, 2]]}
    categories = [{"id": i, "name": n, **points} for i, n in ((1, "red"), (2, "blue"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return f"coco:{folder / 'a.json'}:{folder / 'images'}"


def write_semantic(folder: Path) -> str:
    """Write four images with label images of three classes."""
    rng = np.random.default_rng(0)
    for number in range(4):
        for part, shape in (("images", (48, 40, 3)), ("labels", (48, 40))):
            (folder / part).mkdir(exist_ok=True, parents=True)
            pixels = rng.integers(0, 256 if part == "images" else 3, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{number}.png")
    return f"semantic:{folder / 'images'}:{folder / 'labels'}:sky,sea,sand"


def make_jobs(data: Path, repository: Path, checkpoint: Callable[[Path], Path]) -> list[Job]:
    """Write the data and return the jobs. ``checkpoint`` writes a pre-trained ResNet-18."""
    pool, scenes = data / "pool", data / "scenes"
    write_pool(pool, count=24, size=40, seed=0)
    few = data / "few"
    write_pool(few, count=12, size=40, seed=0)
    write_voc_scenes(scenes, splits={"train": 4, "test": 1}, size=64, seed=0)
    coco, semantic = write_coco(data / "coco"), write_semantic(data / "semantic")
    pretrained = checkpoint(data)
    folder = {"result": run_result, "saved": run_saved, "resume": ["--resume"]}
    pretrain = ["pretrain", "--config-file", "demo_moco", "DATA.ROOT", str(pool)]
    pretrain += ["OUTPUT_DIR", "{out}", *TINY_PRETRAIN, "KNN.TEST", str(pool), "KNN.K", "5"]
    jobs = [
        Job("pretrain", [*pretrain, "DATA.NUM_WORKERS", "0"], **folder),
        Job("pretrain, two workers", [*pretrain, "DATA.NUM_WORKERS", "2"], **folder, weight=0.2),
    ]

    def train(
        head: str, config: str, flag: str, *more: str, engine: str = "torchvision", workers: int = 0
    ) -> Job:
        words = ["train", "--config-file", config, "--engine", engine, "--dataset", f"mine={flag}"]
        words += ["DATASETS.TRAIN", "mine", "DATASETS.TEST", "mine", "OUTPUT_DIR", "{out}"]
        words += ["DATALOADER.NUM_WORKERS", str(workers), *TINY_TRAIN, *more]
        weight = 1.0 if head.startswith("boxes") and not workers else 0.2
        return Job(f"train {head}", words, **folder, weight=weight)

    voc = f"voc:{scenes}:train:{scenes / 'classes.txt'}"
    low = ["SOLVER.BASE_LR", "0.0025"]
    mask = [*low, "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", *FEW]
    points = [*low, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "16,16"]
    points += [*FEW, "TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.05, 0.05]"]
    sizes = "INPUT.CROP.SIZE 33,33 INPUT.MIN_SIZE_TRAIN 32,64 SOLVER.BASE_LR 0.005".split()
    boxes = ["demo_R_18_FPN", voc, *FPN, *FEW, "SOLVER.BASE_LR", "0.015"]
    heads = {
        "boxes": boxes,
        "masks": ["coco_R_18_FPN_320px", coco, *FPN, *mask],
        "C4": ["coco_R_18_C4_320px", coco, *mask],
        "keypoints": ["coco_keypoint_R_18_FPN_320px", coco, *FPN, *points],
        "segmentation": ["voc_R_18_FCN_small", semantic, *sizes],
    }
    jobs += [train(head, *words) for head, words in heads.items()]
    jobs.append(train("boxes, two workers", *boxes, workers=2))
    if importlib.util.find_spec("detectron2"):
        alone = ["DATALOADER.ASPECT_RATIO_GROUPING", "False"]  # else images wait for a partner
        for head, words in heads.items():
            jobs.append(train(f"{head}, Detectron2", *words, *alone, engine="detectron2"))
    linear = ["linear", str(pretrained), "--train", str(few), "--test", str(few), "--output"]
    linear += "{out} --epochs 5 --batch-size 4 --cache-features --workers 0".split()
    linear += ["--image-size", "32"]
    jobs.append(Job("linear", linear, **folder))
    pack = ["pack", str(pool), "{out}", "--workers", "0"]
    jobs.append(Job("pack", pack, pack_result, pack_saved))

    def older(name: str) -> Callable[[Path], None]:
        def prepare(out: Path) -> None:
            out.mkdir(parents=True, exist_ok=True)
            if not (out / name).exists():
                (out / name).write_bytes(b"what an earlier run wrote")

        return prepare

    result, saved = one_file("backbone.pkl")
    convert = ["convert", str(pretrained), "{out}/backbone.pkl"]
    jobs.append(Job("convert", convert, result, saved, prepare=older("backbone.pkl")))
    for cell in ("moco_seed0", "moco_seed1", "random_seed0"):
        cells = repository / "docs" / "results" / "cells" / "cells"
        shutil.copytree(cells / cell, data / "cells" / cell)
    result, saved = one_file("report.html")
    report = ["report", str(data / "cells"), *"--format html --output {out}/report.html".split()]
    jobs.append(Job("report", report, result, saved, prepare=older("report.html")))
    matrix = "benchmark --tasks demo_R_18_FPN --init random --seeds 2 --output {out}".split()
    matrix += ["--dataset", f"mine={voc}", "DATASETS.TRAIN", "mine", "DATASETS.TEST", "mine"]
    matrix[1:1] = ["--engine", "torchvision"]
    matrix += ["DATALOADER.NUM_WORKERS", "0", *TINY_TRAIN, *FPN, *FEW, "SOLVER.BASE_LR", "0.015"]
    jobs.append(Job("benchmark", matrix, benchmark_result, benchmark_saved, weight=0.2))
    return jobs
