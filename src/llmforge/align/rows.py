"""Records of preferences as ids: read by the corpus package, rendered by the chat template, each used or counted as rejected."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmforge.corpus import Reader, ReadOptions
from llmforge.errors import UserError
from llmforge.tokenizer.chat_template import ChatTemplate

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Rows:
    """Columns of ids, each (tokens,) int32, by name: of pairs `prompt_ids`, `chosen_ids` and `rejected_ids`, of prompts
    `prompt_ids`. `account` says what became of every record.
    """

    columns: dict[str, list[Ids]]
    account: dict[str, Any]

    def __len__(self) -> int:
        return len(self.columns["prompt_ids"])

    @property
    def longest(self) -> int:
        """The tokens of the longest prompt, with the longer of its answers."""
        prompts, *answers = self.columns.values()
        return max(
            len(prompt) + max((len(one[i]) for one in answers), default=0) for i, prompt in enumerate(prompts)
        )

    def dataset(self) -> Any:
        """The same as a `datasets.Dataset` in memory, with the number of each row in `row`."""
        import datasets
        import pyarrow as pa

        ids = pa.list_(pa.int32())
        columns = {name: pa.array(values, ids) for name, values in self.columns.items()}
        return datasets.Dataset(pa.table({**columns, "row": pa.array(range(len(self)), pa.int64())}))


def read_rows(
    paths: Sequence[Path],
    kind: Literal["pairs", "prompts"],
    template: ChatTemplate,
    max_length: int,
    max_rejected: float,
) -> Rows:
    """The records of `paths` in order. `UserError` where none can be used, or a larger share than `max_rejected` cannot."""
    reader = Reader(paths, ReadOptions(conversations=kind), max_rejected=max_rejected)
    names = ("prompt_ids", "chosen_ids", "rejected_ids") if kind == "pairs" else ("prompt_ids",)
    columns: dict[str, list[Ids]] = {name: [] for name in names}
    for chunk, before, block in reader.blocks():
        texts = block.conversations.to_pylist() if block.conversations is not None else [None] * len(block)
        for number, text in enumerate(texts):
            try:
                if text is None:
                    raise UserError("a text, and no record of fields")
                made = _encoded(json.loads(text), template)
                if sum(map(len, made[:1])) + max(map(len, made[1:]), default=0) > max_length:
                    raise UserError(f"longer than --max-length {max_length}")
            except UserError as error:
                reader.reject(chunk, before + int(block.line[number]), str(error).rstrip("."))
                continue
            for name, ids in zip(names, made, strict=True):
                columns[name].append(ids)
    rows = Rows(columns, reader.account.as_json())
    if not len(rows):
        raise UserError(
            f"{', '.join(map(str, paths))}: none of the {reader.account.read:,} records can be used; the first is {reader.account.first}."
        )
    return rows


def _encoded(value: dict[str, Any], template: ChatTemplate) -> list[Ids]:
    """The ids of the prompt, and of pairs those of both answers, each with the token that ends it."""
    asked, tools = value["messages"], value.get("tools")
    if "chosen" not in value:
        return [np.array(template.encode(asked, tools), np.int32)]
    found = []
    for name in ("chosen", "rejected"):
        ids, trained = template.training([*asked, value[name]], tools, last=True)
        places = np.flatnonzero(trained)
        if not len(places):
            raise UserError("the chat template renders no answer")
        found.append((ids[: places[-1] + 1], int(places[0])))
    # A token may span the end of the prompt and the beginning of one answer.
    begin = min(first for _, first in found)
    (chosen, _), (rejected, _) = found
    if (chosen[:begin] != rejected[:begin]).any():
        raise UserError("the chat template renders the prompts of chosen and rejected differently")
    if not begin:
        raise UserError("the chat template renders no prompt")
    if np.array_equal(chosen, rejected):
        raise UserError("the chat template renders chosen and rejected alike")
    return [chosen[:begin], chosen[begin:], rejected[begin:]]
