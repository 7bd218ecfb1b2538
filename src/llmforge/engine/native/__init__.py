"""The native engine: PyTorch alone, on a CPU or GPUs, one process or many."""

from llmforge.engine.native.engine import NativeEngine
from llmforge.engine.settings import Settings

__all__ = ["NativeEngine", "Settings"]
