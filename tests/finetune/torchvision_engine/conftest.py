"""Lets the tests of this folder import the modules of this folder, however pytest was started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
