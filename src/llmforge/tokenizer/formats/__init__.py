"""The files of a tokenizer: what each field may hold, and what it means for ids (docs/tokenizer.md)."""
