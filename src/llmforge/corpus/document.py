"""A document: its segments, which of them are trained on, its category, and where it stands."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A part of a document's text; one that is not `trained` is read by the model and not learned."""

    text: str
    trained: bool = True


@dataclass(frozen=True)
class Place:
    """Where a document stands: the file, and its line (of a format without lines, its number in the file), from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class Document:
    """Segments that are encoded as one text, in order."""

    segments: tuple[Segment, ...]
    category: str
    place: Place

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)
