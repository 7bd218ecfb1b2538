"""Lets tests share how a command is run in this process (test_mutations.py); no test asserts times, hypothesis' too."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")
