"""The native engine: PyTorch alone, on a CPU or GPUs, one process or many."""

from llmforge.backends.common.settings import Settings
from llmforge.backends.torch.engine import NativeEngine

__all__ = ["NativeEngine", "Settings"]
