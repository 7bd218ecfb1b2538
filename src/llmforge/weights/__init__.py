"""Models on disk: configurations, weights by streaming, export and comparison (docs/model.md)."""
