"""The Detectron2 engine, and the plugin for a train_net of one's own; the only place that imports
detectron2.

Importing it registers what the configs name and Detectron2 lacks: the heads
    ``Res5ROIHeadsExtraNorm`` (also of basic blocks) and the
backbone ``build_resnet_dc5_backbone``. A train_net.py of one's own then needs two lines:

    import moco_transfer.finetune.detectron2_engine
    cfg.merge_from_file(moco_transfer.config.path("pascal_voc_R_50_C4_24k"))

and, for data sets registered with ``moco_transfer.data.register_dataset``, :func:`add_datasets`;
:func:`build_evaluator` is Detectron2's evaluator for a data set, chosen by what its metadata say
and not by its name.
"""

from ... import config  # noqa: F401 - so that the second line finds it
from .datasets import add_datasets, build_evaluator
from .dc5 import DilatedC5, build_resnet_dc5_backbone
from .res5_head import Res5ROIHeadsExtraNorm

__all__ = [
    "DilatedC5",
    "Res5ROIHeadsExtraNorm",
    "add_datasets",
    "build_evaluator",
    "build_resnet_dc5_backbone",
]
