"""Pre-training: MoCo v1 and v2, and the supervised baseline on the same trunk."""

from .moco import MoCo

__all__ = ["MoCo"]
