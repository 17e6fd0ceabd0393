"""Kept until its callers import ``build``."""

from .build import TorchvisionEngine

__all__ = ["TorchvisionEngine"]
