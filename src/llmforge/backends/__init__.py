"""Engines: what turns micro-batches into one optimizer step, on whatever machine there is
(docs/training.md).
"""
