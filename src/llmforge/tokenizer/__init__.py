"""Tokenizers: load, learn pieces, expand, verify, compare (docs/tokenizer.md). Imports no torch."""

from llmforge.tokenizer.load import Tokenizer, load, load_unbuilt

__all__ = ["Tokenizer", "load", "load_unbuilt"]
