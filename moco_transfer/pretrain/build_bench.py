"""What the images of a config cost beside its training step: `moco-transfer bench-data`."""

from __future__ import annotations

import time

import torch
from fvcore.common.config import CfgNode

from ..data.bench import describe_cpu, describe_measurement, measure_stages, measure_workers
from ..data.images.shard_index import ShardSet
from ..data.views.view_batch import ViewBatch, ViewMaker
from ..runtime.distributed import start_processes
from ..runtime.errors import InputError
from .build import build_run
from .build_data import decoding_device, open_images, plan_run, view_maker
from .trainer import Pretraining, step

_BATCH_ON_CPU = 32  # images; a step on more takes as long an image, and a minute in all


def bench_data(cfg: CfgNode, *, seconds: float, gpu_images_per_sec: float) -> list[str]:
    """Measure what reading DATA.ROOT costs and how many data workers the step needs; a third of the
    time for the stages, the workers, the step.

    Args:
        cfg: A pre-training config.
        seconds: How long to measure.
        gpu_images_per_sec: What the training step takes without waiting, on another machine; 0 to
            measure it here.

    Returns:
        The lines to print.

    Raises:
        InputError: If the data cannot be used, or are tar shards.
    """
    device = start_processes(cfg.TRAIN.DEVICE)
    folder = open_images(cfg)
    if isinstance(folder, ShardSet):
        raise InputError(
            f"bench-data measures images that can be read in any order; {cfg.DATA.ROOT} is a"
            " stream of tar shards. Unpack one shard."
        )
    make_views, batch, workers = view_maker(cfg), cfg.DATA.BATCH_SIZE_TOTAL, cfg.DATA.NUM_WORKERS
    decode_on = decoding_device(cfg, folder, device)
    costs = measure_stages(
        folder, make_views, device=device, seconds=seconds / 3, batch_size=min(batch, len(folder))
    )
    fed = measure_workers(
        folder,
        make_views,
        batch_size=batch,
        num_workers=workers,
        seconds=seconds / 3,
        decode_on=decode_on,
    )
    if gpu_images_per_sec:
        return [
            folder.describe(),
            *describe_measurement(costs, fed, num_workers=workers, wanted=gpu_images_per_sec),
        ]
    taken = min(batch, _BATCH_ON_CPU) if device.type == "cpu" else batch
    run = build_run(cfg, folder, plan_run(cfg, folder, start_iteration=0), device)
    images_per_sec = step_images_per_sec(run, make_views, batch_size=taken, seconds=seconds / 3)
    said = (
        f"the training step takes {images_per_sec:.1f} images/s on {_name(device)} (batches of"
        f" {taken}, no images to wait for)"
    )
    if device.type == "cpu":
        return [
            folder.describe(),
            *describe_cpu(costs, fed, num_workers=workers, step=images_per_sec, said=said),
        ]
    return [
        folder.describe(),
        said,
        *describe_measurement(costs, fed, num_workers=workers, wanted=images_per_sec),
    ]


def step_images_per_sec(
    run: Pretraining, make_views: ViewMaker, *, batch_size: int, seconds: float
) -> float:
    """Return the images/s of the training step on one batch of noise, which lies on the device
    already.

    Args:
        run: From ``build_run``; it is trained on noise.
        make_views: The views' number and size.
        batch_size: Images.
        seconds: How long to measure; at least one step after a first one that does not count.
    """
    batch = ViewBatch(make_views, batch_size).finished()
    batch["views"] = torch.randint(0, 256, batch["views"].shape, dtype=torch.uint8)
    batch |= {
        "label": torch.zeros(batch_size, dtype=torch.int64),
        "index": torch.arange(batch_size),
    }
    batch |= {name: batch[name].to(run.device) for name in ("views", "label", "index")}
    run.wrapped.train()
    float(step(run, batch)["loss"])
    count, since = 0, time.perf_counter()
    while not count or time.perf_counter() - since < seconds:
        float(step(run, batch)["loss"])  # waits for the device
        count += 1
    return count * batch_size / (time.perf_counter() - since)


def _name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} threads of this CPU"
    )
