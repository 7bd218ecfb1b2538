"""Measuring models on text: bits per byte, which is comparable across vocabularies, and generation."""
