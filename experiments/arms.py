"""Arms: what is compared, as short YAML files in arms/.

    base: 5M
    pieces: 1000
    init: [subtoken-mean, mean]
    learning_rate: [1.0e-3, 2.0e-3, 4.0e-3]

A list is a sweep: each combination of values is an arm, named after the file and the values that it was given of lists
(`grown-1000.init=mean.learning_rate=0.002`).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import yaml

ARMS = Path(__file__).parent / "arms"
PARTS = 8  # of a budget: a checkpoint is written after each
MEASURED = (0, 1, 2, 4, 8)  # parts after which bits per byte are measured


@dataclass(frozen=True)
class Arm:
    """One way to teach the source model Chinese at a budget of training FLOPs.

    `pieces` new tokens are asked for; 0 leaves the vocabulary as it is. `untie` gives the base a head of its own, a copy
    of its embedding. The first `first_parts` eighths of the budget train `first_trainable` alone, at
    `first_learning_rate`. `replay` is the share of rows that are English, `rows` the rows of a step. `grow` and `train` are further options of
    `init-model` and of `train` (of both stages), such as {cross-document-attention: true}.
    """

    name: str
    base: str
    learning_rate: float
    pieces: int = 0
    init: str = "subtoken-mean"
    head_init: str = "same"
    untie: bool = False
    first_parts: int = 0
    first_trainable: str = "new-embeddings"
    first_learning_rate: float | None = None
    replay: float = 0.1
    rows: int = 2
    seed: int = 1
    budget: float = 2e12
    grow: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.first_parts < PARTS:
            raise ValueError(f"{self.name}: first_parts must be 0 to {PARTS - 1}.")
        if bool(self.first_parts) != (self.first_learning_rate is not None):
            raise ValueError(f"{self.name}: first_parts and first_learning_rate go together.")
        if not self.pieces and (self.init, self.head_init, self.grow) != ("subtoken-mean", "same", {}):
            raise ValueError(f"{self.name}: init, head_init and grow need pieces, there are no new rows.")
        if not self.pieces and self.first_parts and self.first_trainable == "new-embeddings":
            raise ValueError(f"{self.name}: there are no new rows to train first.")

    @property
    def family(self) -> str:
        """The arms that differ in learning rates and seed alone: at each compute the best of them counts."""
        head = "" if self.head_init == "same" else f", head {self.head_init}"
        init = f", {self.init}{head}" if self.pieces else ""
        size = f"{self.pieces:,} new tokens" if self.pieces else "no new tokens"
        untied = ", untied" if self.untie else ""
        first = f", {self.first_trainable} first {self.first_parts}/{PARTS}" if self.first_parts else ""
        replay = "" if self.replay == 0.1 else f", replay {self.replay:.0%}"
        further = "".join(
            f", {name.replace('-', ' ')}" if value is True else f", {name} {value}"
            for name, value in {**self.grow, **self.train}.items()
        )
        return f"{size}{init}{untied}{first}{replay}{further}"


def read_arms(file: Path) -> Iterator[Arm]:
    """The arms of a YAML file. Raises `ValueError` for keys that arms do not have, values of other types (but 6e12, which is a word in YAML,
    is a number here) and values that contradict."""
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    known = {one.name for one in fields(Arm)} - {"name"}
    if not isinstance(values, dict) or set(values) - known:
        unknown = ", ".join(sorted(set(values) - known)) if isinstance(values, dict) else "no keys"
        raise ValueError(f"{file}: {unknown}; an arm has {', '.join(sorted(known))}.")
    swept = [key for key, value in values.items() if isinstance(value, list)]
    for chosen in itertools.product(*(values[key] for key in swept)):
        given = dict(zip(swept, chosen, strict=True))
        name = ".".join([file.stem, *(f"{key}={value}" for key, value in given.items())])
        try:
            yield msgspec.convert({**values, **given, "name": name}, Arm, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(f"{file}: {error}") from error


def all_arms(directory: Path = ARMS) -> dict[str, Arm]:
    """Every arm by name."""
    return {arm.name: arm for file in sorted(directory.glob("*.yaml")) for arm in read_arms(file)}


def recipe_of(name: str) -> str:
    """The name of the file that an arm comes from."""
    return name.split(".")[0]
