"""The Detectron2 engine and plugin; the only place that imports detectron2.

Importing it registers what the configs name and Detectron2 lacks. A train_net.py of your own then
needs two lines:

    import moco_transfer.finetune.detectron2_engine
    cfg.merge_from_file(moco_transfer.config.path("pascal_voc_R_50_C4_24k"))

and, for data sets registered with ``moco_transfer.data.register_dataset``, :func:`add_datasets`;
:func:`build_evaluator` is this project's evaluator for a data set.
"""

from ... import config  # noqa: F401 - so that the second line finds it
from .blocks import DilatedC5, Res5ROIHeadsExtraNorm, build_resnet_dc5_backbone
from .datasets import add_datasets, build_evaluator
from .segmentation import (
    FCNHead,
    add_segmentation_keys,
    build_resnet_dilated_backbone,
    segmentation_mapper,
)

__all__ = [
    "DilatedC5",
    "FCNHead",
    "Res5ROIHeadsExtraNorm",
    "add_datasets",
    "add_segmentation_keys",
    "build_evaluator",
    "build_resnet_dc5_backbone",
    "build_resnet_dilated_backbone",
    "segmentation_mapper",
]
