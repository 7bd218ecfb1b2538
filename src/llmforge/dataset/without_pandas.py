"""Imported first in a process that encodes: pyarrow then takes pandas for not installed.

It would import it with the first array, a third of a second in every process, only to ask whether a list is one
of its Series.
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _Refusal(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "pandas":
            raise ImportError(f"{fullname} is not needed here")


if "pandas" not in sys.modules:
    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    import pyarrow as pa

    pa.array([0])  # here it looks, once and for all
    sys.meta_path.remove(refusal)
