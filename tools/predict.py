#!/usr/bin/env python
"""The same program as `moco-transfer predict`; see `--help`."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # runs from a source tree without installation

from moco_transfer.cli.main import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("predict"))
