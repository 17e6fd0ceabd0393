"""The detection config's defaults; ``detection_schema.yaml`` holds them.

A config that loads here loads in an untouched ``detectron2.config.get_cfg()`` and the other way
round: one YAML serves both engines. With Detectron2 installed a test compares every key, value and
type with its config.
"""

from .schema_file import read_schema

DETECTION_DEFAULTS = read_schema("detection_schema")
