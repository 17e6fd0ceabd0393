"""The checkpoint layouts of the projects that pre-train ResNets: where each keeps its encoder and
what it keeps beside it.

Conventions:
    A prefix is what stands before ``layer1.0.conv1.weight`` once the wrappers are taken off: the
    outer dict's key (``state_dict.``, ``model.``) and ``module.`` (DistributedDataParallel) or
    ``_orig_mod.`` (torch.compile) anywhere. "q" is the encoder that is trained (query, online,
    student), "k" the one that follows it (key, momentum, target, a moving average of the weights).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """One project's way to store an encoder.

    Attributes:
        format: The name for ``--from`` and for the stamp.
        title: The project, in words.
        naming: A key of :data:`moco_transfer.convert.key_maps.READ_NAME`.
        query: Prefixes of the encoder "q", the preferred one first.
        key: Prefixes of the encoder "k".
        marker: A regular expression that some line of the file must match for the layout to be
            recognised; "" for none. A line is the full name of a tensor, ``key=value`` of a short
            text in the outer dict, or ``container=torch``.
        unless: A regular expression that no line may match; "" for none.
        mechanism: What it was trained with, None where the layout does not tell.
        epoch: Where the file counts the epochs finished, a dotted path such as ``meta.epoch``; ""
            where it does not.
    """

    format: str
    title: str
    naming: str
    query: tuple[str, ...]
    key: tuple[str, ...] = ()
    marker: str = ""
    unless: str = ""
    mechanism: str | None = None
    epoch: str = ""

    def fits(self, lines: Iterable[str]) -> bool:
        """Tell whether a file with these lines can be of this layout."""
        lines = list(lines)
        is_marked = not self.marker or any(re.search(self.marker, line) for line in lines)
        return is_marked and not (
            self.unless and any(re.search(self.unless, line) for line in lines)
        )


_ONLINE = (
    "online_encoder.net.",
    "online_encoder.",
    "online_network.",
    "online_network.encoder.",
    "online_backbone.",
)
_TARGET = (
    "target_encoder.net.",
    "target_encoder.",
    "target_network.",
    "target_network.encoder.",
    "target_backbone.",
)
_LIGHTLY = r"(^|\.)(projection_head|prediction_head|projection_head_momentum)\.|(^|\.)(backbone_momentum|(key|teacher)_backbone)\."
_LIGHTLY_STUDENT = r"(^|\.)(query|student)_backbone\."
_SOLO = r"(^|\.)momentum_(backbone|encoder|projector|classifier)\.|(^|\.)classifier\.(weight|bias)$"
_MM = r"(^|\.)(encoder_q|online_net)\.0\.|(^|\.)neck\.|^author=OpenSelfSup"

LAYOUTS = (
    # Each of these has names that no other project has, or a marker.
    Layout(
        *("moco_v3", "MoCo v3", "torchvision", ("base_encoder.",), ("momentum_encoder.",)),
        marker=r"(^|\.)base_encoder\.",
        mechanism="moco_v3",
        epoch="epoch",
    ),
    Layout(
        *(
            "densecl",
            "DenseCL",
            "torchvision",
            ("encoder_q.0.", "backbone.", ""),
            ("encoder_k.0.",),
        ),
        marker=r"(^|\.)queue2$|^author=DenseCL$",
        mechanism="densecl",
        epoch="meta.epoch",
    ),
    # OpenSelfSup keeps one and the same module as encoder_q[0] and as backbone.
    Layout(
        *("openselfsup", "OpenSelfSup or mmselfsup", "torchvision"),
        ("encoder_q.0.", "online_net.0.", "backbone.", ""),
        ("encoder_k.0.", "target_net.0."),
        marker=_MM,
        epoch="meta.epoch",
    ),
    # Where lightly has one of these, its backbone is the one that follows (benchmarks until
    # February 2024, DINO's until now).
    *(
        Layout(
            *(
                "lightly",
                "lightly",
                naming,
                ("query_backbone.", "student_backbone."),
                ("backbone.", "teacher_backbone."),
            ),
            marker=_LIGHTLY_STUDENT,
        )
        for naming in ("torchvision", "sequential")
    ),
    *(
        Layout(
            *(
                "lightly",
                "lightly",
                naming,
                ("backbone.",),
                ("backbone_momentum.", "key_backbone.", "teacher_backbone."),
            ),
            marker=marker,
            unless=_LIGHTLY_STUDENT,
        )
        for naming, marker in (("torchvision", _LIGHTLY), ("sequential", ""))
    ),
    Layout(
        *(
            "solo_learn",
            "solo-learn",
            "torchvision",
            ("backbone.", "backbone.encoder.", "encoder."),
        ),
        ("momentum_backbone.", "momentum_encoder."),
        marker=_SOLO,
    ),
    Layout(
        *("simsiam", "SimSiam", "torchvision", ("encoder.",)),
        marker=r"(^|\.)predictor\.",
        unless=r"(^|\.)momentum_(encoder|backbone)\.|(^|\.)base_encoder\.",
        mechanism="simsiam",
        epoch="epoch",
    ),
    Layout(
        "swav",
        "SwAV",
        "torchvision",
        ("",),
        marker=r"(^|\.)prototypes",
        mechanism="swav",
        epoch="epoch",
    ),
    Layout(
        *("dino", "DINO", "torchvision", ("student.backbone.",), ("teacher.backbone.",)),
        marker=r"^teacher\.",
        mechanism="dino",
        epoch="epoch",
    ),
    *(
        Layout("byol", "BYOL", naming, _ONLINE, _TARGET, marker=r"(^|\.)online_", mechanism="byol")
        for naming in ("torchvision", "sequential")
    ),
    Layout(
        *("vissl", "VISSL", "torchvision", ("_feature_blocks.", "trunk._feature_blocks.")),
        ("moco_encoder.trunk._feature_blocks.",),
        marker=r"(^|\.)_feature_blocks\.",
    ),
    Layout(
        "timm", "timm", "torchvision", ("",), marker=r"^container=safetensors$|^state_dict_ema\."
    ),
    # These are what is left when nothing above fits.
    Layout(
        "moco",
        "MoCo v1/v2",
        "torchvision",
        ("encoder_q.",),
        ("encoder_k.",),
        mechanism="moco",
        epoch="epoch",
    ),
    Layout("torchvision", "torchvision", "torchvision", ("",)),
    Layout("detectron2", "Detectron2", "detectron2", ("", "backbone.bottom_up.", "backbone.")),
    Layout("caffe2", "Caffe2 (MSRA, Detectron 1)", "caffe2", ("",)),
    Layout("backbone", "a ResNet under 'backbone.'", "torchvision", ("backbone.",)),
    Layout("encoder", "a ResNet under 'encoder.'", "torchvision", ("encoder.",)),
)
"""In order of preference: where two fit the same tensors, the first names them.

Those with a marker go before those without.
"""

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
        "head beside the encoder"
    ),
    r"(.*\.)?\w*(neck|mlp|classifier|head|heads)\d*\..*": "head beside the encoder",
}
"""What may lie outside of the encoder's prefix -> why it is dropped.

Anything else is dropped as "outside of" the prefix.
"""
