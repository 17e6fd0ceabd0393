"""Configs: strict YAML with ``_BASE_``, one syntax for both schemas; needs no torch."""

from .load import (
    flatten_config,
    is_set_by_user,
    load_detection_config,
    load_pretrain_config,
    read_detection_config,
    reference_batch_and_lr,
)
from .paths import available, path

__all__ = [
    "available",
    "flatten_config",
    "is_set_by_user",
    "load_detection_config",
    "load_pretrain_config",
    "path",
    "read_detection_config",
    "reference_batch_and_lr",
]
