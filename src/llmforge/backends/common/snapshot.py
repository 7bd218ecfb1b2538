"""What the snapshots of all engines have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmforge.backends.common import storage
from llmforge.backends.common.peft_files import PeftAdapter
from llmforge.backends.common.processes import agree


@dataclass(frozen=True, kw_only=True)
class CommonSnapshot:
    """Copies on the CPU: of the weights and the `adapter` (on the main rank), and of this rank's share of the state. `group`:
    the ranks that save; None where there is one process.
    """

    weights: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor] | None
    group: Any = None
    adapter: PeftAdapter | None = None

    @property
    def adapted(self) -> bool:
        return self.adapter is not None

    def agree(self, fine: bool) -> bool:
        return fine if self.group is None else agree(fine, self.group)

    def bytes_here(self) -> int:
        """Bytes of what this rank holds."""
        return storage.bytes_of(self.weights, self.state, self.adapter.tensors if self.adapter else None)

    def write_model(self, directory: Path) -> None:
        if self.weights:
            storage.write_weights(self.weights, directory)

    def write_adapter(self, directory: Path) -> None:
        if self.adapter:
            self.adapter.write(directory)
