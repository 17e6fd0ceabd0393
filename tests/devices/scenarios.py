"""What a run does, once on the CPU and once on the pretended device; run by test_on_a_device.py.

    python tests/devices/scenarios.py FILE [NAME ...]

writes to FILE for each name ``{"cpu": found, "device": found, "waits": {operator: count}}``, or
``{"error": traceback}``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
sys.path[:0] = [str(HERE), str(TESTS), str(TESTS / "finetune" / "torchvision_engine")]

from detector_cases import NUM_CLASSES, draw_images, draw_weights, images_of, make_config  # noqa: E402
from generated_images import write_pool  # noqa: E402
from pretended_device import NAME, PretendedDevice  # noqa: E402
from pretrain.small_runs import (  # noqa: E402
    NoImages,
    SmallEncoder,
    config,
    last_state,
    rows_of,
    told_during_training,
)
from pytest import MonkeyPatch  # noqa: E402

from moco_transfer.config import load_detection_config, load_pretrain_config  # noqa: E402
from moco_transfer.data.views import native  # noqa: E402
from moco_transfer.data.views.augmentation import RECIPES, draw_parameters  # noqa: E402
from moco_transfer.data.views.labelled import find_labelled  # noqa: E402
from moco_transfer.data.views.view_colours import ROW, colour_row  # noqa: E402
from moco_transfer.finetune import predict, trainer  # noqa: E402
from moco_transfer.finetune.sync_norm import recompute_bn_statistics  # noqa: E402
from moco_transfer.finetune.torchvision_engine.build import TorchvisionEngine  # noqa: E402
from moco_transfer.finetune.torchvision_engine.roi_pool import CellGrid, roi_align  # noqa: E402
from moco_transfer.models import build_encoder  # noqa: E402
from moco_transfer.pretrain import plan as planning  # noqa: E402
from moco_transfer.pretrain.encoder_file import read_encoder  # noqa: E402
from moco_transfer.pretrain.linear import LinearPlan, LinearProtocol, evaluate_linear  # noqa: E402
from moco_transfer.pretrain.run import Pretraining, build_run, pretrain, step  # noqa: E402
from moco_transfer.runtime.checkpoint import CheckpointFolder  # noqa: E402
from moco_transfer.runtime.device import Compute, Precision  # noqa: E402
from moco_transfer.runtime.distributed import get_rank, stop_processes  # noqa: E402
from moco_transfer.runtime.stop import StopRequest  # noqa: E402

CPU, DEVICE = torch.device("cpu"), torch.device(NAME, 0)
PRECISIONS = {name: Precision(name, "a test") for name in ("fp32", "bf16", "fp16")}

# --- pre-training, step by step -----------------------------------------------------------------

STEPS: dict[str, dict[str, Any]] = {
    "moco": {},  # of a ResNet-18, the others of a small network
    "moco_v1": {"DATA.AUGMENTATION": "v1", "MOCO.MLP": False},
    "symmetric": {"MOCO.SYMMETRIC": True},
    "accumulated": {"SOLVER.ACCUMULATE": 2},
    "end_to_end": {"MECHANISM": "end_to_end"},
    "memory_bank": {"MECHANISM": "memory_bank"},
    "supervised": {"MECHANISM": "supervised"},
    "reference_pipeline": {"DATA.PIPELINE": "reference"},
    "bf16": {"TRAIN.PRECISION": "bf16"},
    "fp16": {"TRAIN.PRECISION": "fp16"},
    "plain_layout": {"TRAIN.CHANNELS_LAST": False, "TRAIN.DETERMINISTIC": True},
}


def pretraining_steps(words: dict[str, Any], device: torch.device, waits: Any) -> dict[str, Any]:
    """Take three steps; the waits are those of the last two."""
    precision = PRECISIONS[words.get("TRAIN.PRECISION", "fp32")]
    settings = {
        **{"MODEL.ARCH": "resnet18", "DATA.IMAGE_SIZE": 32, "DATA.BATCH_SIZE_TOTAL": 8},
        **{"MOCO.QUEUE_SIZE": 20, "MOCO.BN_GROUP_SIZE": 4, "TRAIN.DEVICE": "cpu"},
        **words,
        "TRAIN.PRECISION": "fp32",
    }
    cfg = load_pretrain_config("moco_v2_R_50_200ep", [str(w) for p in settings.items() for w in p])
    plan = planning.plan_pretrain(cfg, source=Labelled())
    with MonkeyPatch.context() as patch:
        if words:
            patch.setattr(planning, "build_encoder", SmallEncoder)
        plan = dataclasses.replace(plan, device=device, compute=Compute(device, precision))
        run = build_run(plan)
    run.model.train()
    losses = []
    for iteration in range(3):
        batch = batch_of(run, iteration)
        if iteration == 1:
            waits.clear()
        torch.manual_seed(iteration)
        measures = step(run, batch)
        run.meter.add(measures, iteration + 1)
        losses.append(measures["loss"])
    counted = dict(waits)
    norms = {k: float(v.double().norm()) for k, v in run.model.state_dict().items()}
    found = {"losses": [float(loss) for loss in losses], "means": run.meter.means()}
    return found | {"norms": sample(norms), "waits": counted}


class Labelled(NoImages):
    class_names = ("a", "b", "c")


def batch_of(run: Pretraining, iteration: int) -> dict[str, Any]:
    """A batch as the data workers make it."""
    maker, n = run.plan.view_maker, run.plan.batch_size_total
    rng, recipe = np.random.default_rng(iteration), RECIPES[maker.recipe]
    shape = (maker.num_views, n, maker.size, maker.size, 3)
    views = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)).permute(0, 1, 4, 2, 3)
    colours = torch.zeros(maker.num_views, n, ROW)
    for view in colours:
        for place in view:
            drawn = draw_parameters(rng, 40, 50, recipe, maker.crop_scale)
            place[:] = torch.tensor(colour_row(drawn, recipe.grey_first))
    index = torch.arange(n) * 3 + iteration
    batch = {"views": views, "label": index % 3, "index": index}
    return batch | ({"colours": colours} if maker.is_fast else {})


def sample(norms: dict[str, float]) -> dict[str, float]:
    """A few tensors of each part."""
    return {name: norms[name] for name in sorted(norms)[::7]}


# --- pre-training, whole runs -------------------------------------------------------------------


def whole_runs(device: torch.device, waits: Any) -> dict[str, Any]:
    """A run with kNN; one that is told to stop, resumed; one from its weights; kNN and linear."""
    with tempfile.TemporaryDirectory() as name, MonkeyPatch.context() as patch:
        folder, pool = Path(name), Path(name) / "pool"
        write_pool(pool, count=24, size=24, seed=0)
        patch.setattr(planning, "build_encoder", SmallEncoder)

        def run(out: str, **options: Any) -> Any:
            plan = planning.plan_pretrain(config(pool, folder / out, KNN__TEST=pool), **options)
            return pretrain(dataclasses.replace(plan, device=device, compute=Compute(device)))

        whole = run("whole").model.state_dict()
        with patch.context() as told:
            told_during_training(told, epoch=2)
            assert run("cut") is None
        resumed = run("cut", resume=True).model.state_dict()
        assert all(torch.equal(whole[k].cpu(), resumed[k].cpu()) for k in whole)
        assert rows_of(folder / "cut") == rows_of(folder / "whole")
        state = last_state(folder / "cut")
        return {
            "rows": rows_of(folder / "whole"),
            "norms": {k: float(v.double().norm()) for k, v in state["state_dict"].items()},
        }


def measured(device: torch.device, waits: Any) -> dict[str, Any]:
    """The linear protocol of a ResNet-18, and a pre-training run that starts from its weights."""
    with tempfile.TemporaryDirectory() as name:
        folder, pool = Path(name), Path(name) / "pool"
        write_pool(pool, count=8, size=24, seed=0)
        torch.manual_seed(0)
        torch.save(build_encoder("resnet18_cifar", num_classes=2).state_dict(), folder / "w.pth")
        encoder, found = read_encoder(str(folder / "w.pth"), arch="resnet18_cifar"), {}
        encoder = dataclasses.replace(
            encoder, view=dataclasses.replace(encoder.view, size=16, resize=16)
        )
        train, test = find_labelled(str(pool), str(pool))
        for cached in (True, False):
            plan = LinearPlan(
                *(encoder, train, test, {}, Compute(device), folder / str(cached)),
                protocol=LinearProtocol(epochs=1, batch_size_total=8, lr=0.1),
                cache_features=cached,
            )
            record = evaluate_linear(plan)
            found[f"cached {cached}"] = [record[k] for k in ("train_loss", "top1", "top5")]
        resumed = evaluate_linear(dataclasses.replace(plan, resume=True))
        assert resumed["top1"] == record["top1"]
        words = {"MODEL__ARCH": "resnet18_cifar", "SOLVER__MAX_ITER": 1}
        plan = planning.plan_pretrain(
            config(pool, folder / "from", **words), init_from=str(folder / "w.pth")
        )
        done = pretrain(dataclasses.replace(plan, device=device, compute=Compute(device)))
        found["init from"] = [row["loss"] for row in rows_of(folder / "from") if "loss" in row]
        assert done is not None and found["init from"]
        return found


# --- two processes ------------------------------------------------------------------------------


def two_ranks(device: torch.device, waits: Any) -> dict[str, Any]:
    """What one of two processes finds: a run of each mechanism, shuffled between them."""
    found = {}
    with tempfile.TemporaryDirectory() as name, MonkeyPatch.context() as patch:
        patch.setattr(planning, "build_encoder", SmallEncoder)
        pool = Path(sys.argv[1]).parent / "pool"
        for mechanism in ("moco", "end_to_end", "memory_bank"):
            folder = Path(name) / mechanism if get_rank() else pool.parent / device.type / mechanism
            words = {"MECHANISM": mechanism, "SOLVER__EPOCHS": 1, "MOCO__QUEUE_SIZE": 10}
            plan = planning.plan_pretrain(config(pool, folder, KNN__TEST=pool, **words))
            run = pretrain(dataclasses.replace(plan, device=device, compute=Compute(device)))
            state = run.model.state_dict()
            found[mechanism] = {k: float(v.double().norm()) for k, v in state.items()}
    return found


def two_processes() -> dict[str, Any]:
    """Start two of this program; return what the first found, and whether the second's is equal."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        write_pool(Path(name) / "pool", count=24, size=24, seed=0)
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        files = [Path(name) / f"{rank}.json" for rank in range(2)]
        started = [
            subprocess.Popen(
                [sys.executable, __file__, str(file), "two_ranks"],
                env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            )
            for rank, file in enumerate(files)
        ]
        for process in started:
            process.wait(timeout=300)
        found = [json.loads(file.read_text())["two_ranks"] for file in files]
        return found[0] | {"equal": found[0].get("device") == found[1].get("device")}


# --- fine-tuning --------------------------------------------------------------------------------

DETECTORS = (
    *("r18_c4_mask", "r50_dc5", "r18_fpn_head_conv", "r18_fpn_bitmask"),
    *("r18_fpn_keypoint", "r18_fpn_mask_keypoint", "fcn"),
)
# All with a thin ResNet-50.
NARROW = {
    "MODEL__RESNETS__DEPTH": 50,
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 8,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 16,
    "MODEL__RESNETS__WIDTH_PER_GROUP": 4,
    "MODEL__FPN__OUT_CHANNELS": 32,
    "MODEL__ROI_BOX_HEAD__FC_DIM": 32,
    "MODEL__ROI_BOX_HEAD__CONV_DIM": 32,
    "MODEL__ROI_MASK_HEAD__CONV_DIM": 32,
    "MODEL__ROI_MASK_HEAD__NUM_CONV": 1,
}


def config_of(case: str) -> Any:
    if case != "fcn":
        return make_config(case, SEED=0, SOLVER__BASE_LR=0.001, **NARROW)
    words = {key.replace("__", "."): value for key, value in NARROW.items() if "RESNETS" in key}
    words |= {"MODEL.DEVICE": "cpu", "SEED": 0, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES}
    return load_detection_config("voc_R_18_FCN_small", [str(w) for p in words.items() for w in p])


def records_of(case: str) -> list[dict]:
    if case != "fcn":
        return images_of(case)
    records = draw_images()
    for number, record in enumerate(records):
        height, width = record["image"].shape[1:]
        places = torch.arange(height * width).view(height, width) // 97 + number
        record["sem_seg"] = torch.where(places % 11 == 0, 255, places % NUM_CLASSES)
    return records


class Keeping:
    """An evaluator that keeps what was found, as the project's own read it."""

    def reset(self) -> None:
        self.found: list[dict[str, Any]] = []

    def process(self, batch: list[dict], outputs: list[dict[str, Tensor]]) -> None:
        self.found += [{name: v.cpu().numpy() for name, v in o.items()} for o in outputs]

    def evaluate(self) -> dict:
        return {}


def detector(case: str, device: torch.device, waits: Any) -> dict[str, Any]:
    """Two steps, PreciseBN, an evaluation, and the checkpoint on an image. The waits are those of
    the second step.
    """
    engine = TorchvisionEngine(config_of(case), device)
    model = engine.build_model()
    model.load_state_dict(draw_weights(model))
    header = {"class_names": list("abcde"), "config": engine.cfg.dump()}
    run = trainer.FineTuning(engine, model, header)
    run.wrapped.train()
    losses = []
    for iteration in range(2):
        run.begin_iteration(iteration)
        waits.clear()
        losses.append(trainer.step(run, records_of(case)))
        run.iteration += 1
    counted = dict(waits)
    recompute_bn_statistics(run.model, iter([records_of(case)]), num_iterations=1)
    images = [[{k: r[k] for k in ("image", "height", "width")}] for r in records_of(case)[:1]]
    kept = Keeping()
    trainer.evaluate(
        *(run.model, images), detect=run.model, evaluator=kept, stop=StopRequest(), num_images=1
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(run, CheckpointFolder(folder), None)
        threshold = None if case == "fcn" else 0.05
        found = predict.load_detector(folder, device=device.type, score_threshold=threshold)
        pixels = images[0][0]["image"].permute(1, 2, 0).byte().numpy()
        kept.found.append(found(pixels))
    return {
        "losses": [{name: float(loss) for name, loss in each.items()} for each in losses],
        "found": [
            {name: [v.shape[0], float(v.astype(np.float64).sum())] for name, v in each.items()}
            for each in kept.found
        ],
        "waits": counted,
    }


# --- the device itself --------------------------------------------------------------------------


def rules(device: torch.device, waits: Any) -> dict[str, bool]:
    """Whether each rule holds; the CPU has none."""
    if device == CPU:
        return {}
    here, cpu, index = torch.ones(3, device=device), torch.ones(3), torch.zeros(1, dtype=torch.long)

    def fails(call: Callable[[], Any]) -> bool:
        try:
            call()
        except (RuntimeError, TypeError):
            return True
        return False

    def waited(call: Callable[[], Any]) -> int:
        waits.clear()
        call()
        return sum(waits.values())

    return {
        "both devices": fails(lambda: here + cpu),
        "a number of the CPU": not fails(lambda: here + torch.tensor(1.0)),
        "indices of the device": fails(lambda: cpu[index.to(device)]),
        "values of the CPU": fails(lambda: here.index_put_((index.to(device),), cpu[:1])),
        "numpy": fails(here.numpy),
        "item": waited(here.sum().item) == 1,
        "mask": waited(lambda: here[here > 0]) == 1,
        "copy": waited(lambda: here.cpu()) == 1 and waited(lambda: cpu.to(device)) == 1,
        "copy that is not waited for": waited(lambda: cpu.to(device, non_blocking=True)) == 0,
        "indices of the CPU": waited(lambda: here[index]) == 1,
        "a constant": waited(lambda: torch.tensor([1.0, 2.0], device=device)) == 1,
    }


def pooled_in_fp16(device: torch.device, waits: Any) -> dict[str, Any]:
    """A region at 1,500 px, where fp16 knows whole pixels only."""
    feature = torch.rand(1, 2, 8, 200, generator=torch.Generator().manual_seed(0)).half()
    rois = torch.tensor([[0, 1500.4, 3, 1560.4, 40]])
    pooled = roi_align(feature.to(device), rois.to(device), CellGrid(7, 1 / 8))
    return {"type": str(pooled.dtype), "values": pooled.float().cpu().flatten().tolist()}


def scenarios() -> Iterator[tuple[str, Callable[[torch.device, Any], dict[str, Any]]]]:
    for name, words in STEPS.items():
        yield name, lambda device, waits, words=words: pretraining_steps(words, device, waits)
    yield "rules", rules
    yield "pooled_in_fp16", pooled_in_fp16
    yield "whole_runs", whole_runs
    yield "measured", measured
    if "RANK" in os.environ:
        yield "two_ranks", two_ranks
    for name in DETECTORS:
        yield name, lambda device, waits, name=name: detector(name, device, waits)


def both(run: Callable[[torch.device, Any], dict[str, Any]]) -> dict[str, Any]:
    """Return what a scenario finds on the CPU and on the device."""
    found: dict[str, Any] = {}
    since = time.process_time()
    try:
        with PretendedDevice() as mode:
            for name, device in (("cpu", CPU), ("device", DEVICE)):
                found[name] = run(device, mode.waits)
                found["waits"] = found[name].pop("waits", {})
    except Exception:
        return {"error": traceback.format_exc()}
    return found | {"seconds": time.process_time() - since}


def main(file: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    native.available = lambda: False  # a device has torch's operators alone
    found = {name: both(run) for name, run in scenarios() if name in names or not names}
    if "two_processes" in names or not names:
        found["two_processes"] = two_processes()
    Path(file).write_text(json.dumps(found))
    stop_processes()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
