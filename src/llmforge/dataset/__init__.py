"""Corpora to datasets of full rows (docs/data.md). Imports no torch, and nothing at all before it is needed."""
