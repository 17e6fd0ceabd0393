"""Configs: strict YAML with ``_BASE_``, one syntax for pre-training and detection, no torch needed
to read one.
"""

from .load import (
    is_set_by_user,
    load_detection_config,
    load_pretrain_config,
    read_detection_config,
    reference_batch_and_lr,
)
from .paths import available, path

__all__ = [
    "available",
    "is_set_by_user",
    "load_detection_config",
    "load_pretrain_config",
    "path",
    "read_detection_config",
    "reference_batch_and_lr",
]
