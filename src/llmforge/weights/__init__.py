"""Models on disk: growing them to a larger vocabulary, exporting and comparing them, by streaming
(docs/model.md).
"""

from llmforge.weights.vocabulary import Vocabulary, check_fits, vocabulary

__all__ = ["Vocabulary", "check_fits", "vocabulary"]
