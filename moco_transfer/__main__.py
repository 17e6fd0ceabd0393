"""``python -m moco_transfer`` is the program ``moco-transfer``."""

import sys

from .cli.main import main

sys.exit(main())
