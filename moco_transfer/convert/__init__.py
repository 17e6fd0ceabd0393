"""Checkpoints of many projects in; Detectron2, torchvision, timm, Hugging Face or MoCo files out.

The steps of a conversion: :mod:`read` (containers, no code run) -> :mod:`formats` (whose
checkpoint, under torchvision's names) -> :mod:`coverage` (nothing missing, left over, misshapen) ->
:mod:`stamp` -> :mod:`write` -> :mod:`verify` (same features). :mod:`zoo` fetches published weights.
"""

from .backbone import BackboneWeights, load_backbone
from .convert import ConversionReport, Inspection, convert_checkpoint, inspect
from .coverage import Coverage, coverage

__all__ = [
    "BackboneWeights",
    "ConversionReport",
    "Coverage",
    "Inspection",
    "convert_checkpoint",
    "coverage",
    "inspect",
    "load_backbone",
]
