"""What a distillation keeps on the disk, to go on from after a kill."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

SECONDS = 30.0


class Saved:
    """Tensors and figures under one name in the directory `work`, replaced at once and at most every `SECONDS` seconds."""

    def __init__(self, work: Path, name: str) -> None:
        self.file = work / f"{name}.safetensors"
        self.last = time.monotonic()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """What was saved last; None where nothing was."""
        from safetensors import safe_open

        if not self.file.exists():
            return None
        with safe_open(self.file, "pt") as file:
            figures = json.loads((file.metadata() or {})["figures"])
            return {name: file.get_tensor(name) for name in file.keys()}, figures  # noqa: SIM118

    def save(
        self, tensors: Mapping[str, torch.Tensor], figures: Mapping[str, Any], now: bool = False
    ) -> None:
        """Saves if it is time to, or `now`."""
        from safetensors.torch import save_file

        if not now and time.monotonic() - self.last < SECONDS:
            return
        partial = self.file.with_suffix(".partial")
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, partial, {"figures": json.dumps(dict(figures))})
        os.replace(partial, self.file)
        self.last = time.monotonic()
