"""The checkpoint layouts of the projects that pre-train ResNets: tables, no code.

A prefix is what stands before ``layer1.0.conv1.weight`` once the wrappers are taken off: the outer
dict's key (``state_dict.``, ``model.``) and ``module.`` (DistributedDataParallel) or ``_orig_mod.``
(torch.compile) anywhere. "q" is the encoder that is trained (query, online, student), "k" the one
that follows it (key, momentum, target, a moving average of the weights).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TORCHVISION = ("torchvision",)
_EITHER = ("torchvision", "sequential")


@dataclass(frozen=True)
class Layout:
    """One project's way to store an encoder.

    Attributes:
        format: The name for ``--from`` and for the stamp.
        title: The project, in words.
        query: Prefixes of the encoder "q", the preferred one first.
        key: Prefixes of the encoder "k".
        namings: Keys of :data:`moco_transfer.convert.key_maps.READ_NAME`.
        marker: A regular expression that some line of the file must match; "" for none. A line is
            the full name of a tensor, ``key=value`` of a short text in the outer dict, or
            ``container=torch``.
        unless: A regular expression that no line may match; "" for none.
        mechanism: What it was trained with, None where the layout does not tell.
        epoch: Dotted path of the number of epochs finished, such as ``meta.epoch``; "" for none.
    """

    format: str
    title: str
    query: tuple[str, ...]
    key: tuple[str, ...] = ()
    namings: tuple[str, ...] = _TORCHVISION
    marker: str = ""
    unless: str = ""
    mechanism: str | None = None
    epoch: str = ""

    def fits(self, lines: Iterable[str]) -> bool:
        """Whether a file with these lines can have this layout."""

        def is_in(pattern: str) -> bool:
            return any(re.search(pattern, line) for line in lines)

        return not (self.marker and not is_in(self.marker)) and not (
            self.unless and is_in(self.unless)
        )


_ONLINE = ("encoder.net.", "encoder.", "network.", "network.encoder.", "backbone.")
_STUDENT = r"(^|\.)(query|student)_backbone\."
_LIGHTLY = (
    r"(^|\.)(projection_head|prediction_head|projection_head_momentum)\."
    r"|(^|\.)(backbone_momentum|(key|teacher)_backbone)\."
)

LAYOUTS = (
    # Those with a marker.
    Layout(
        *("moco_v3", "MoCo v3", ("base_encoder.",), ("momentum_encoder.",)),
        marker=r"(^|\.)base_encoder\.",
        mechanism="moco_v3",
        epoch="epoch",
    ),
    Layout(
        *("densecl", "DenseCL", ("encoder_q.0.", "backbone.", ""), ("encoder_k.0.",)),
        marker=r"(^|\.)queue2$|^author=DenseCL$",
        mechanism="densecl",
        epoch="meta.epoch",
    ),
    Layout(  # stores one module twice, as encoder_q[0] and as backbone
        *("openselfsup", "OpenSelfSup or mmselfsup"),
        ("encoder_q.0.", "online_net.0.", "backbone.", ""),
        ("encoder_k.0.", "target_net.0."),
        marker=r"(^|\.)(encoder_q|online_net)\.0\.|(^|\.)neck\.|^author=OpenSelfSup",
        epoch="meta.epoch",
    ),
    Layout(  # benchmarks until February 2024, and DINO: ``backbone`` is the one that follows
        *("lightly", "lightly"),
        ("query_backbone.", "student_backbone."),
        ("backbone.", "teacher_backbone."),
        _EITHER,
        marker=_STUDENT,
    ),
    *(
        Layout(
            *("lightly", "lightly", ("backbone.",)),
            ("backbone_momentum.", "key_backbone.", "teacher_backbone."),
            (naming,),
            marker=marker,
            unless=_STUDENT,
        )
        for naming, marker in (("torchvision", _LIGHTLY), ("sequential", ""))
    ),
    Layout(
        *("solo_learn", "solo-learn", ("backbone.", "backbone.encoder.", "encoder.")),
        ("momentum_backbone.", "momentum_encoder."),
        marker=(
            r"(^|\.)momentum_(backbone|encoder|projector|classifier)\."
            r"|(^|\.)classifier\.(weight|bias)$"
        ),
    ),
    Layout(
        *("simsiam", "SimSiam", ("encoder.",)),
        marker=r"(^|\.)predictor\.",
        unless=r"(^|\.)momentum_(encoder|backbone)\.|(^|\.)base_encoder\.",
        mechanism="simsiam",
        epoch="epoch",
    ),
    Layout("swav", "SwAV", ("",), marker=r"(^|\.)prototypes", mechanism="swav", epoch="epoch"),
    Layout(
        *("dino", "DINO", ("student.backbone.",), ("teacher.backbone.",)),
        marker=r"^teacher\.",
        mechanism="dino",
        epoch="epoch",
    ),
    Layout(
        *("byol", "BYOL"),
        tuple(f"online_{name}" for name in _ONLINE),
        tuple(f"target_{name}" for name in _ONLINE),
        _EITHER,
        marker=r"(^|\.)online_",
        mechanism="byol",
    ),
    Layout(
        *("vissl", "VISSL", ("_feature_blocks.", "trunk._feature_blocks.")),
        ("moco_encoder.trunk._feature_blocks.",),
        marker=r"(^|\.)_feature_blocks\.",
    ),
    Layout("timm", "timm", ("",), marker=r"^container=safetensors$|^state_dict_ema\."),
    # Those left when none above fits.
    Layout(
        *("moco", "MoCo v1/v2", ("encoder_q.",), ("encoder_k.",)), mechanism="moco", epoch="epoch"
    ),
    Layout("torchvision", "torchvision", ("",)),
    Layout(
        *("detectron2", "Detectron2", ("", "backbone.bottom_up.", "backbone.")),
        namings=("detectron2",),
    ),
    Layout("caffe2", "Caffe2 (MSRA, Detectron 1)", ("",), namings=("caffe2",)),
    Layout("backbone", "a ResNet under 'backbone.'", ("backbone.",)),
    Layout("encoder", "a ResNet under 'encoder.'", ("encoder.",)),
)
"""In order of preference: where two fit the same tensors, the first names them."""

CONTAINERS = (
    r"classy_state_dict|base_model|loss|checkpoint|state_dict|model_state_dict|model_state|model|net"
    r"|blobs"
)
"""Pattern: keys of outer dicts; VISSL's encoder lies five deep."""

AVERAGES = r"state_dict_ema|model_ema|ema_state_dict|ema_model|ema"
"""Pattern: keys under which a moving average of the weights is kept."""

_HEAD = "head, not part of a backbone"

HEADS = {
    r"(fc\d*|head|heads|classifier|last_linear|linear|stem\.fc|pred)[._].*": (
        f"classifier or projection {_HEAD}"
    ),
    r"(projector|projection_head|prediction_head|predictor|prototypes|neck|mlp)\d*\..*": (
        f"projection {_HEAD}"
    ),
    r".*_momentum": "momentum of Caffe2's optimizer",
}
"""What may lie under an encoder's own prefix without being backbone -> why it is dropped."""

BESIDE = {
    r"(.*\.)?\w*queue\w*": "queue of negatives",
    r"(.*\.)?optimizer\w*\..*": "optimizer state",
    r"(.*\.)?(roi_heads|proposal_generator|sem_seg_head)\..*": "detector head",
    r"(.*\.)?backbone\.(fpn_|top_block).*": "feature pyramid, not part of a backbone",
    r"(.*\.)?pixel_(mean|std)": "pixel statistics of a detector",
    r"(.*\.)?\w*(projector|projection_head|prediction_head|predictor|prototypes)\d*\..*": (
        "head next to the encoder"
    ),
    r"(.*\.)?\w*(neck|mlp|classifier|head|heads)\d*\..*": "head next to the encoder",
}
"""What may lie outside of the prefix -> why it is dropped; anything else is "outside of" it."""

INERT = """
argparse.Namespace builtins.getattr typing.Any datetime.datetime datetime.timedelta
pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath
pathlib._local.PosixPath pathlib._local.Path
numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct
numpy.dtypes.Float64DType numpy.dtypes.Float32DType numpy.dtypes.Int64DType
omegaconf.base.ContainerMetadata omegaconf.base.Metadata omegaconf.dictconfig.DictConfig
omegaconf.listconfig.ListConfig omegaconf.nodes.AnyNode omegaconf.nodes.StringNode
omegaconf.nodes.IntegerNode omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode
lightning_fabric.utilities.data.AttributeDict lightning.fabric.utilities.data.AttributeDict
pytorch_lightning.utilities.parsing.AttributeDict
pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
mmengine.logging.history_buffer.HistoryBuffer mmengine.config.config.ConfigDict
mmcv.utils.config.ConfigDict classy_vision.generic.util.Timer
yacs.config.CfgNode fvcore.common.config.CfgNode
""".split()  # noqa: SIM905 - a table
"""Classes of the bookkeeping next to the tensors, which read.py replaces by empty stand-ins.

mmengine's HistoryBuffer names its methods by ``builtins.getattr``; the stand-in looks nothing up.
"""
