#!/usr/bin/env python
"""Compare training step and inference of the embedded engine with Detectron2's.

    python tools/bench_detection.py        (needs Detectron2; BENCH_DEVICE=cuda for a GPU)

Each engine and precision runs in a process of its own. The processes take turns, one step each, on
the same weights, images and random draws, so that a busy machine slows all of them equally. Printed
are seconds of wall clock and CPU seconds, which other work disturbs less (least with
OMP_NUM_THREADS=1). Detectron2 is measured in float32 and under autocast to bfloat16. Peak memory is
the process's on a CPU, and that of its tensors on a GPU. The table shows how many times faster than
Detectron2 ours is, and which part of its peak memory it takes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without installation

MODELS = {
    "r50_c4": "pascal_voc_R_50_C4_24k",
    "mask_r50_fpn": "coco_R_50_FPN_1x",
    "r18_fpn_small": "own_R_18_FPN_small",  # of our own; --engines ours ours-bf16
}
ENGINES = ("detectron2", "ours", "detectron2-bf16", "ours-bf16")
# One process: synchronised BN is BN, and Detectron2's SyncBN does not run on a CPU. The lr leaves
# the weights as they are.
OVERRIDES = ["MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", "SOLVER.BASE_LR", "1e-9"]


def load_config(model: str):
    """Return the config of a model for either engine, frozen."""
    from moco_transfer.config import load_detection_config

    device = ["MODEL.DEVICE", os.environ.get("BENCH_DEVICE", "cpu")]
    return load_detection_config(MODELS[model], [*OVERRIDES, *device])


def draw_weights(model: str) -> dict:
    """Return weights for all engines: initial ones, but scores spread so that objects appear."""
    import torch

    from moco_transfer.finetune.torchvision_engine.build import build_model

    torch.manual_seed(0)
    state = build_model(load_config(model)).state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.8, 1.2)
        elif name.endswith(("conv3.norm.weight", "res5.norm.weight")):
            tensor.fill_(0.2)
        elif name.endswith("objectness_logits.weight"):
            tensor.mul_(40)
        elif name.endswith("cls_score.weight"):
            tensor.mul_(20)
    return state


def draw_images(count: int, height: int, width: int, num_classes: int) -> list[dict]:
    """Return records of noisy images with eight rectangles each, which are the objects."""
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    records = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (3, height // 16 + 1, width // 16 + 1), dtype=np.uint8)
        image = np.kron(coarse, np.ones((16, 16), np.uint8))[:, :height, :width].astype(np.float32)
        sizes = rng.uniform(24, [width / 2, height / 2], (8, 2))
        corners = rng.uniform(0, [width, height] - sizes)
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        for x0, y0, x1, y1 in boxes.astype(int):
            image[:, y0:y1, x0:x1] = rng.uniform(0, 255, (3, 1, 1))
        records.append(
            {
                "image": torch.from_numpy(image),
                "height": height,
                "width": width,
                "gt_boxes": torch.from_numpy(boxes).float(),
                "gt_classes": torch.from_numpy(rng.integers(0, num_classes, 8)),
                "gt_masks": [
                    [np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes
                ],
            }
        )
    return records


class Ours:
    """The embedded engine."""

    def __init__(self, model: str, state: dict) -> None:
        """Build with the weights ``state``."""
        from moco_transfer.finetune.torchvision_engine.build import build_model, build_optimizer

        cfg = load_config(model)
        self.model = build_model(cfg)
        self.model.load_state_dict(state)
        self.model.to(cfg.MODEL.DEVICE)
        self.optimizer = build_optimizer(cfg, self.model)

    def losses(self, records: list[dict]) -> dict:
        """Return the losses of a batch."""
        return self.model(records)

    def detect(self, records: list[dict]) -> int:
        """Return the number of detections."""
        return sum(len(output["boxes"]) for output in self.model(records))


class Detectron2:
    """Detectron2's model and optimizer, as its plain training loop has them."""

    def __init__(self, model: str, state: dict) -> None:
        """Build with the weights ``state``."""
        from detectron2.config import get_cfg
        from detectron2.layers import get_norm
        from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
        from detectron2.modeling.roi_heads import Res5ROIHeads
        from detectron2.solver import build_optimizer

        class Res5ROIHeadsExtraNorm(Res5ROIHeads):
            """The C4 head of MoCo's configs: one more norm after res5."""

            def __init__(self, cfg, input_shape):
                super().__init__(cfg, input_shape)
                self.res5.add_module(
                    "norm", get_norm(cfg.MODEL.RESNETS.NORM, self.res5[-1].out_channels)
                )

        if Res5ROIHeadsExtraNorm.__name__ not in ROI_HEADS_REGISTRY:
            ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)
        cfg = get_cfg()
        ours = load_config(model).clone()
        del ours.SOLVER["REFERENCE_WORLD_SIZE"]
        cfg.merge_from_other_cfg(ours)
        self.model = build_model(cfg)
        self.model.load_state_dict(state)
        self.optimizer = build_optimizer(cfg, self.model)

    def losses(self, records: list[dict]) -> dict:
        """Return the losses of a batch."""
        from detectron2.utils.events import EventStorage

        with EventStorage():
            return self.model([self._with_instances(record) for record in records])

    def detect(self, records: list[dict]) -> int:
        """Return the number of detections."""
        keys = ("image", "height", "width")
        return sum(
            len(output["instances"])
            for output in self.model([{key: r[key] for key in keys} for r in records])
        )

    @staticmethod
    def _with_instances(record: dict) -> dict:
        from detectron2.structures import Boxes, Instances, PolygonMasks

        instances = Instances((record["height"], record["width"]))
        instances.gt_boxes = Boxes(record["gt_boxes"].clone())
        instances.gt_classes = record["gt_classes"].clone()
        instances.gt_masks = PolygonMasks(record["gt_masks"])
        return {
            **{key: record[key] for key in ("image", "height", "width")},
            "instances": instances,
        }


def memory_mb(field: str) -> float:
    """Return VmRSS or VmHWM (the largest since ``forget_peak``) of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) / 1e3


def forget_peak(device: str) -> None:
    """Let the peak of ``peak_mb`` start again."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()  # nor does the last step's work count as this one's time
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: str) -> float:
    """Return the most memory since ``forget_peak``: tensors on a GPU, else the whole process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    return memory_mb("VmHWM")


def step(engine: Ours | Detectron2, task: str, records: list[dict], dtype) -> dict:
    """Do one training step on all records, or inference on the first; return its figures."""
    import torch

    device = next(engine.model.parameters()).device.type
    torch.manual_seed(1)
    forget_peak(device)
    start, own = time.perf_counter(), time.process_time()
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        if task == "train":
            engine.model.train()
            losses = engine.losses(records)
        else:
            engine.model.eval()
            with torch.no_grad():
                found = engine.detect(records[:1])
    if task == "train":
        engine.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        engine.optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    if task == "train":
        out = {"losses": {name: loss.item() for name, loss in losses.items()}}
    else:
        out = {"detections": found}
    return {
        "sec": time.perf_counter() - start,
        "cpu_sec": time.process_time() - own,
        "peak_mb": peak_mb(device),
        **out,
    }


def work(model: str, engine: str, folder: Path) -> None:
    """Serve steps to the parent process: a task's name on a line in, JSON on a line out."""
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Detectron2 prints goes elsewhere
    import torch

    state = torch.load(folder / "weights.pth")
    records = torch.load(folder / "images.pth", weights_only=False)
    runner = (Ours if engine.startswith("ours") else Detectron2)(model, state)
    del state
    dtype = torch.bfloat16 if engine.endswith("bf16") else None
    for task in sys.stdin:
        try:
            result = step(runner, task.strip(), records, dtype)
        except (RuntimeError, NotImplementedError) as problem:
            result = {"error": str(problem).splitlines()[0]}
        print(json.dumps(result), file=reply, flush=True)


def measure(model: str, args: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[dict]]]:
    """Return for each engine and task the replies to its steps, without the first, a warm-up."""
    command = [sys.executable, __file__, "--worker", str(folder), "--models", model, "--engines"]
    workers = {
        engine: subprocess.Popen(
            [*command, engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for engine in args.engines
    }
    replies: dict[str, dict[str, list[dict]]] = {engine: {} for engine in args.engines}
    for task in args.tasks:
        for number in range(args.repeats + 1):
            for engine, worker in workers.items():
                worker.stdin.write(f"{task}\n")
                worker.stdin.flush()
                reply = json.loads(worker.stdout.readline())
                print(
                    f"{model} {task} {engine} #{number} load {os.getloadavg()[0]:.1f}:"
                    f" {json.dumps(reply)}",
                    flush=True,
                )
                if number and "error" not in reply:
                    replies[engine].setdefault(task, []).append(reply)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return replies


def summarise(model: str, replies: dict[str, dict[str, list[dict]]]) -> list[dict]:
    """Print a line for each engine and task, and return them.

    A line has the median seconds and the peak memory; ours also how many times Detectron2's speed
    it has (more is better) and what part of Detectron2's peak memory it takes (1 is equal, less is
    better), compared with Detectron2 in float32 and under autocast.
    """
    rows = []
    for task in dict.fromkeys(task for tasks in replies.values() for task in tasks):
        seconds = {
            engine: [r["sec"] for r in tasks[task]]
            for engine, tasks in replies.items()
            if task in tasks
        }
        peaks = {engine: max(r["peak_mb"] for r in replies[engine][task]) for engine in seconds}
        for engine, values in seconds.items():
            row = {"model": model, "task": task, "engine": engine}
            row |= {"sec": round(statistics.median(values), 3), "sec_min": round(min(values), 3)}
            cpu_sec = statistics.median(r["cpu_sec"] for r in replies[engine][task])
            row |= {"peak_mb": round(peaks[engine]), "cpu_sec": round(cpu_sec, 3)}
            for other in ("detectron2", "detectron2-bf16"):
                if other in seconds and not engine.startswith("detectron2"):
                    pairs = zip(seconds[other], values, strict=True)
                    ratios = [theirs / own for theirs, own in pairs]
                    row[f"times_{other}"] = round(statistics.median(ratios), 2)
                    row[f"memory_of_{other}"] = round(peaks[engine] / peaks[other], 3)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=["r50_c4", "mask_r50_fpn"],
        help="which detectors (default: r50_c4 mask_r50_fpn)",
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        default=list(ENGINES),
        help="which engines and precisions (default: all)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=("train", "infer"),
        default=["train", "infer"],
        help="training step, inference or both (default: both)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="steps of each engine and task that count (default: 3)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=2,
        help="images in a training step (default: 2); inference takes one",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[480, 640],
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images, px (default: 480 640)",
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.models[0], args.engines[0], args.worker)
    import torch

    rows, load = [], os.getloadavg()[0]
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(draw_weights(model), Path(folder) / "weights.pth")
            records = draw_images(
                args.batch, *args.size, load_config(model).MODEL.ROI_HEADS.NUM_CLASSES
            )
            torch.save(records, Path(folder) / "images.pth")
            rows += summarise(model, measure(model, args, Path(folder)))
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_before": load,
        "load_after": os.getloadavg()[0],
    }
    print(json.dumps({"rows": rows, "size": args.size, "batch": args.batch, **machine}))


if __name__ == "__main__":
    main()
