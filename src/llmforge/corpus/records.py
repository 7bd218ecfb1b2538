"""Records to documents: the fields that were asked for, wherever in a record they lie."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.corpus.block import Block, Rejection
from llmforge.corpus.conversations import contents, conversation_of
from llmforge.corpus.options import CONVERSATION, ReadOptions, number_name
from llmforge.corpus.spans import Spans

Numbers = npt.NDArray[np.int64]


def schema_of(options: ReadOptions) -> pa.Schema:
    """One column of text for each field."""
    return pa.schema([(name, pa.string()) for name in options.names])


def text_fields(record: Any, options: ReadOptions) -> dict[str, str | None]:
    """The fields of one JSON value; a `ValueError` says why it is no document."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    found: dict[str, str | None] = dict.fromkeys(options.names)
    for name in options.numbers:
        found[number_name(name)] = _number(lookup(record, name), name)
    if options.conversations:
        conversation = conversation_of(record, options.conversations)
        if conversation is not None:
            found |= {CONVERSATION: conversation, options.texts[0]: contents(conversation)}
            category = lookup(record, options.category_field) if options.category_field else None
            if isinstance(category, str):
                found[options.category_field] = category
            return found
    for name in options.fields:
        value = lookup(record, name)
        if value is not None and not isinstance(value, str):
            raise ValueError(not_text(name, options))
        if value is not None:
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"'{name}' holds an unpaired surrogate") from None
        found[name] = value
    return found


def _number(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"'{name}' is not a number" if value is not None else f"no number '{name}'")
    return repr(float(value))


def lookup(record: dict[str, Any], name: str) -> Any:
    """The value of the key `name`, else of the keys that its dots join; None where there is none."""
    if name in record or "." not in name:
        return record.get(name)
    value: Any = record
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def not_text(name: str, options: ReadOptions) -> str:
    """Why a value is rejected that is no text; for a field that can be done without, how."""
    flags = {options.source_field: "--source-field", options.category_field: "--category-field"}
    without = f' ({flags[name]} "" reads without it)' if name in flags and name not in options.texts else ""
    return f"'{name}' is not text{without}"


def to_block(
    table: pa.Table,
    numbers: Numbers,
    rejected: list[Rejection],
    options: ReadOptions,
    category: str,
    lines: int,
    size: int,
) -> Block:
    """A table of `schema_of` as a block: documents without text are rejected, missing categories filled in with
    `category`. `numbers` are the lines of its rows.
    """
    import pyarrow.compute as pc

    column = {name: _flat(table[name]) for name in options.names}
    first, *others = (column[name] for name in options.texts)
    target = pc.coalesce(first, *others) if first.null_count else first
    length = np.asarray(pc.fill_null(pc.binary_length(target), -1)).astype(np.int64)
    source = column.get(options.source_field)
    if source is not None and source.null_count == len(source):
        source = None
    whole = length
    if source is not None:
        whole = length + np.asarray(pc.fill_null(pc.binary_length(source), 0)).astype(np.int64)
    keep = (length > 0) & (whole <= options.max_document_bytes)
    named, conversations = column.get(options.category_field), column.get(CONVERSATION)
    values = {name: np.asarray(pc.cast(column[number_name(name)], pa.float64())) for name in options.numbers}
    if not keep.all():
        for row in np.flatnonzero(~keep).tolist():
            reason = options.too_long
            if length[row] <= 0:
                missing = f"no {' or '.join(repr(name) for name in options.texts)}"
                if options.conversations:
                    missing += ", and no conversation"
                reason = "empty text" if length[row] == 0 else missing
            rejected.append(Rejection(int(numbers[row]), reason))
        rejected.sort(key=lambda entry: entry.line)
        mask = pa.array(keep)
        target, numbers = target.filter(mask), numbers[keep]
        source = None if source is None else source.filter(mask)
        named = None if named is None else named.filter(mask)
        conversations = None if conversations is None else conversations.filter(mask)
        values = {name: own[keep] for name, own in values.items()}
    untrained = Spans.none(len(target))
    if source is not None and source.null_count < len(target):
        source = pc.fill_null(source, "")
        untrained = Spans.leading(np.asarray(pc.binary_length(source)).astype(np.int64))
        target = pc.binary_join_element_wise(source, target, "")
    if named is None:
        named = pa.nulls(len(target), pa.string())
    named = pc.fill_null(named, "")
    categories = pc.dictionary_encode(pc.if_else(pc.equal(named, ""), category, named))
    return Block(target, untrained, categories, numbers, rejected, lines, size, conversations, values)


def _flat(values: Any) -> Any:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
