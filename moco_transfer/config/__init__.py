"""Configs: strict YAML with ``_BASE_``, one syntax for pre-training and detection, no torch needed to read one."""

from .load import load_detection_config, load_pretrain_config, reference_batch_and_lr
from .paths import available, path

__all__ = ["available", "load_detection_config", "load_pretrain_config", "path", "reference_batch_and_lr"]
