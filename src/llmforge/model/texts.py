"""The text that some initialisations learn from."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llmforge.errors import UserError
from llmforge.tokenizer.corpus import all_documents, corpus_files

BATCH_CHARACTERS = 1 << 20


def batches(paths: Sequence[Path], max_characters: int) -> Iterator[list[str]]:
    """The documents of the corpus files `paths` in lists of about a million characters, `max_characters` in all.

    Raises `UserError` for a file or line that is no text, and if there is no text at all.
    """
    held: list[str] = []
    size = total = 0
    for text in all_documents(corpus_files(paths)):
        held.append(text)
        size, total = size + len(text), total + len(text)
        if size >= BATCH_CHARACTERS or total >= max_characters:
            yield held
            held, size = [], 0
        if total >= max_characters:
            return
    if held:
        yield held
    if not total:
        raise UserError(f"--corpus {', '.join(map(str, paths))}: there is no text in it.")
