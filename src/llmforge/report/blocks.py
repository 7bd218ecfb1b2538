"""What a report is made of, however it is shown (`html.page`, `markdown.page`). Every text is shown as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Points: TypeAlias = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    """The columns that are not in `text_columns` are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)


@dataclass(frozen=True)
class Curves:
    """Lines by their names, of finite (x, y) in the order of x; `x` and `y` name the axes."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Points]


@dataclass(frozen=True)
class Bars:
    """Numbers of at least 0 by name, in groups; a name has one color in all of them."""

    title: str
    groups: Mapping[str, Mapping[str, float]]
    digits: int = 3


@dataclass(frozen=True)
class Sample:
    """A text of several lines under its label, in stretches; those that are `struck` are not part of what matters."""

    label: str
    stretches: Sequence[tuple[str, bool]]


Block: TypeAlias = Heading | Paragraph | Table | Curves | Bars | Sample
