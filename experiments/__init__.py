"""The experiment behind llmforge's defaults: which way teaches a model a language with the least compute."""
