"""Resizing embeddings and heads to a larger vocabulary (docs/model.md)."""
