"""Configs: strict YAML with ``_BASE_``, one syntax for both schemas; needs no torch."""

from .load import (
    is_set_by_user,
    load_detection_config,
    load_pretrain_config,
    read_detection_config,
    reference_batch_and_lr,
)
from .paths import available, name_of, path
from .schema_file import flatten_config, without_schema

__all__ = [
    "available",
    "flatten_config",
    "is_set_by_user",
    "load_detection_config",
    "load_pretrain_config",
    "name_of",
    "path",
    "read_detection_config",
    "reference_batch_and_lr",
    "without_schema",
]
