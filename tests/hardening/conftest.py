"""Lets tests share how a command is run in this process (test_mutations.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
