#!/usr/bin/env python
"""The same program as `moco-transfer reproduce`; see `--help`."""

import sys
from pathlib import Path

# Runs from a source tree without installation.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moco_transfer.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
