"""Training on preferences with TRL (docs/preferences.md): pairs or rewards decide what is learned, not the text alone."""
