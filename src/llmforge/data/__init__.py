"""Corpora to datasets of full rows, and the dataset that training reads (docs/data.md). Imports no torch."""

from llmforge.data.dataset import PackedDataset, Row

__all__ = ["PackedDataset", "Row"]
