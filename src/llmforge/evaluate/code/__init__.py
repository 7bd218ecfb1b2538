"""Problems that a model answers with a program: read, generated, run in a sandbox, counted."""
