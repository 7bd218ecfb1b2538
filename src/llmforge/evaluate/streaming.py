"""Text that appears while it is generated."""

from collections.abc import Callable, Sequence

from llmforge.evaluate.generation import CONTEXT, end_ids, text_after
from llmforge.evaluate.models import Loaded

UNFINISHED = "\ufffd"  # what bytes of a character decode to while others are missing


def visible(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    return text[: min((text.index(word) for word in stop if word in text), default=len(text))]


class TextStream:
    """Writes the text behind `prompt` as its ids come: whole characters, and nothing that may be part of a stop string."""

    def __init__(
        self,
        loaded: Loaded,
        prompt: Sequence[int],
        stop: Sequence[str],
        write: Callable[[str], None],
        ends: Sequence[int] | None = None,
    ) -> None:
        self.loaded, self.prompt, self.stop, self.write = loaded, list(prompt[-CONTEXT:]), stop, write
        self.ids: list[int] = []
        self.ends = frozenset(end_ids(loaded) if ends is None else ends)
        self.written = 0
        self.ended = False

    def put(self, token: int) -> None:
        """The next id; those from the one that ends a text on are passed over."""
        self.ended = self.ended or token in self.ends
        if self.ended:
            return
        self.ids.append(token)
        text = self._text()
        self._write(text[: len(text) - self._held(text)])

    def finish(self) -> str:
        """Writes the rest; returns the whole text."""
        self._write(self._text())
        return self._text()

    def _text(self) -> str:
        return visible(text_after(self.loaded, self.prompt, self.ids), self.stop)

    def _held(self, text: str) -> int:
        """How many characters at the end may still change or begin a stop string."""
        parts = (len(text) - len(text.rstrip(UNFINISHED)),)
        beginnings = (
            size for word in self.stop for size in range(1, len(word)) if text.endswith(word[:size])
        )
        return max((*parts, *beginnings))

    def _write(self, text: str) -> None:
        if len(text) > self.written:
            self.write(text[self.written :])
            self.written = len(text)
