"""Continual pretraining with vocabulary expansion."""

__version__ = "0.1.0"
