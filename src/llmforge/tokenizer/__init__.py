"""Tokenizers: load, learn pieces, expand, verify, compare (docs/tokenizer.md). Imports no torch, and nothing before it is
needed: options stand in the help of commands.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmforge.tokenizer.loading import Tokenizer, load, load_unbuilt

__all__ = ["Tokenizer", "load", "load_unbuilt"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from llmforge.tokenizer import loading

    return getattr(loading, name)
