"""Image sources, the two-view pipeline, samplers, VOC and COCO readers, the catalogue of detection
data sets.
"""

from __future__ import annotations

__all__ = ["register_dataset"]


def __getattr__(name: str):
    # Lazy, so that importing the package (a pre-training run does) loads neither torch nor the
    # detection readers.
    if name == "register_dataset":
        from .annotations.catalog import register_dataset

        return register_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
