"""Image sources, the two-view pipeline, samplers, readers of annotations, and the catalogue of
detection data sets.
"""

from .annotations.catalog import register_dataset

__all__ = ["register_dataset"]
