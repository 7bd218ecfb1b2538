"""What `prepare-data` can be asked for, and how the values of its flags are read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.corpus import ReadOptions, default_categories
from llmforge.dataset.packing import ONE
from llmforge.errors import UsageError
from llmforge.steps import fingerprint, fingerprint_json


@dataclass(frozen=True)
class PrepareOptions:
    """A preparation. `holdout` and `max_rejected` are shares, 0 to 1.

    `flat`: the parts lie in `output` itself rather than in its `arrow` (the ancestor's
    --data-arrow-output-dir). `mix`: category to weight; `max_tokens` 0: all. `dedup`: "", "exact" or "near".
    `shard`: (number from 0, of how many). `workers` 0: one per core. `ray`: "local" or the address of a
    cluster. `documents_per_row` 1: a row is a document or a part of one, whatever `splice`; 0: no limit. `cache_dir`: where the shards lie while the work goes on, instead of beside the output.
    """

    inputs: list[Path]
    tokenizer_dir: Path
    output: Path
    flat: bool = False
    max_length: int = 4096
    bins: int = 10
    splice: str = "best-fit"
    documents_per_row: int = 0
    reading: ReadOptions = field(default_factory=ReadOptions)
    mix: dict[str, float] = field(default_factory=dict)
    max_tokens: int = 0
    holdout: float = 0.0
    dedup: str = ""
    gopher: bool = False
    blocklist: Path | None = None
    decontaminate: list[Path] = field(default_factory=list)
    stop_on_bad_line: bool = False
    max_rejected: float = 0.01
    seed: int = 42
    workers: int = 0
    ray: str = ""
    shard: tuple[int, int] | None = None
    merge: bool = False
    cache_dir: Path | None = None
    overwrite: bool = False

    @property
    def rows_by(self) -> str:
        """How `splice` makes rows."""
        return ONE if self.documents_per_row else self.splice

    def arguments(self, tokenizer_fingerprint: str) -> dict[str, Any]:
        """What decides the bytes of the dataset, besides its inputs."""
        leaked = [fingerprint(path) for path in self.decontaminate]
        return {
            "tokenizer": tokenizer_fingerprint,
            "categories": default_categories(self.inputs),
            "flat": self.flat,
            "max_length": self.max_length,
            "num_spliced_dataset_bins": self.bins,
            "splice": self.splice,
            "documents_per_row": self.documents_per_row,
            "text_field": self.reading.text_field,
            "source_field": self.reading.source_field,
            "category_field": self.reading.category_field,
            "lines": self.reading.lines,
            "max_document_bytes": self.reading.max_document_bytes,
            "mix": self.mix,
            "max_tokens": self.max_tokens,
            "holdout": self.holdout,
            "dedup": self.dedup,
            "quality": "gopher" if self.gopher else "",
            "blocklist": fingerprint(self.blocklist) if self.blocklist else "",
            "decontaminate": fingerprint_json(leaked) if leaked else "",
            "seed": self.seed,
        }


def parse_share(flag: str, text: str) -> float:
    """`0.5%` or `0.005` as 0.005; a `UsageError` for anything that is no share."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{flag} {text} is not a share; write 0.5% or 0.005.")
    return value


def parse_choice(flag: str, text: str, choices: Sequence[str]) -> str:
    """`text`, if it is one of `choices`."""
    if text not in choices:
        raise UsageError(f"{flag} {text} is not known; choose one of {', '.join(choices)}.")
    return text


def parse_mix(items: Sequence[str]) -> dict[str, float]:
    """`zh=0.7 en=0.3` as a dictionary; weights need not sum to 1."""
    mix: dict[str, float] = {}
    for item in items:
        name, equals, number = item.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not equals or not name or not 0 <= weight < float("inf"):
            raise UsageError(f"--mix {item} is not CATEGORY=SHARE; write zh=0.7,en=0.3.")
        if name in mix:
            raise UsageError(f"--mix names {name} twice.")
        mix[name] = weight
    if mix and not sum(mix.values()):
        raise UsageError("--mix gives every category the share 0; at least one must be above it.")
    return mix


def parse_count(flag: str, text: str) -> int:
    """`2000000`, `2M`, `1.5B` or `2e6` as a number."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([KMBT]?)", text.replace("_", ""), re.IGNORECASE)
    try:
        value = float(match[1]) * 1000 ** " KMBT".index(match[2].upper() or " ") if match else -1.0
    except ValueError:
        value = -1.0
    if value < 0:
        raise UsageError(f"{flag} {text} is not a number; write 2000000, 2M or 1.5B.")
    return round(value)


def parse_shard(text: str) -> tuple[int, int] | None:
    """`0/4` as (0, 4)."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(
            f"--shard {text} is not I/N; shards count from 0, so 0/4 to 3/4 are the four of four."
        )
    return int(match[1]), int(match[2])
