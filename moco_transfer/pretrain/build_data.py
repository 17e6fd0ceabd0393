"""The images of a pre-training run from its config: the source, the order, the views, the loader."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode

from ..data.images.image_source import ImageSource, IndexedSource
from ..data.images.labelled import EvaluationView, protocol_resize
from ..data.images.shard_stream import ShardStream
from ..data.images.sources import open_source
from ..data.views.loading import Batches, Loader, plan_batches
from ..data.views.view_batch import ViewMaker


def open_images(cfg: CfgNode) -> IndexedSource | ShardStream:
    """Find the images that the config names; see ``open_source``."""
    return open_source(
        cfg.DATA.ROOT,
        layout=cfg.DATA.LAYOUT,
        list_file=cfg.DATA.LIST_FILE,
        num_images=cfg.DATA.NUM_IMAGES,
    )


def with_packed_pixels(cfg: CfgNode, folder: ImageSource) -> CfgNode:
    """Return a config that holds what packing did to the pixels, so that config.yaml and the
    checkpoints hold it too.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATA.PACKED_PIXELS = folder.pixel_change
    cfg.freeze()
    return cfg


def plan_run(cfg: CfgNode, folder: ImageSource, *, start_iteration: int) -> Batches:
    """Lay down which images this process reads in each iteration; see ``plan_batches``."""
    # A run measured in iterations ends within its last epoch.
    iterations_per_epoch = max(1, len(folder) // cfg.DATA.BATCH_SIZE_TOTAL)
    epochs = -(-cfg.SOLVER.MAX_ITER // iterations_per_epoch) or cfg.SOLVER.EPOCHS
    return plan_batches(
        folder,
        batch_size_total=cfg.DATA.BATCH_SIZE_TOTAL,
        epochs=epochs,
        seed=cfg.SEED,
        num_workers=cfg.DATA.NUM_WORKERS,
        shuffle_buffer=cfg.DATA.SHUFFLE_BUFFER,
        start_iteration=start_iteration,
    )


def build_loader(
    cfg: CfgNode, folder: ImageSource, batches: Batches, device: torch.device
) -> Loader:
    """Return the batches of the run, from where its plan starts."""
    settings = {"num_workers": cfg.DATA.NUM_WORKERS, "pin_memory": device.type == "cuda"}
    return Loader(folder, batches, view_maker(cfg), **settings)


def view_maker(cfg: CfgNode) -> ViewMaker:
    """Return what makes the views of an image."""
    num_views = 1 if cfg.MECHANISM in ("supervised", "memory_bank") else 2
    return ViewMaker(
        cfg.DATA.AUGMENTATION,
        cfg.DATA.IMAGE_SIZE,
        tuple(cfg.DATA.CROP_SCALE),
        num_views,
        cfg.DATA.PIPELINE,
    )


def evaluation_view(cfg: CfgNode) -> EvaluationView:
    """Return how kNN and the linear protocol see images."""
    data = cfg.DATA
    return EvaluationView(
        data.IMAGE_SIZE,
        data.TEST_RESIZE or protocol_resize(data.IMAGE_SIZE),
        tuple(data.PIXEL_MEAN),
        tuple(data.PIXEL_STD),
    )
