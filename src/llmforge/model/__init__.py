"""Models on disk: growing them to a larger vocabulary, exporting and comparing them, by streaming
(docs/model.md).
"""

from llmforge.model.vocabulary import Vocabulary, check_fits, vocabulary

__all__ = ["Vocabulary", "check_fits", "vocabulary"]
