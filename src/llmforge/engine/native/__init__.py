"""The native engine: PyTorch alone, on a CPU or GPUs, one process or many."""

from llmforge.engine.native.engine import NativeEngine, Settings

__all__ = ["NativeEngine", "Settings"]
