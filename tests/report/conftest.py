"""Lets the tests of this folder import `synthetic_run`, the made-up run beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
