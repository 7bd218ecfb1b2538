"""Tables of Arrow's types to documents, for the formats that hold tables; a row takes the place of a line."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.corpus import conversations
from llmforge.corpus.block import Rejection
from llmforge.corpus.options import ReadOptions
from llmforge.corpus.records import not_text, schema_of, text_fields

Numbers = npt.NDArray[np.int64]


def unusable(schema: pa.Schema, options: ReadOptions, what: str) -> str:
    """Why no row of a table with this schema can be used, if so; `what` is how the file is called."""
    kinds: dict[str, Any] = {}
    for name in options.fields:
        try:
            kinds[name] = _kind(schema, name)
        except KeyError:
            return f"{what} has two columns '{name}'"
    if options.conversations and any(
        name in schema.names for name in conversations.fields_of(options.conversations)
    ):
        return ""
    if options.conversations in conversations.PREFERENCES or all(
        kinds[name] is None for name in options.texts
    ):
        columns = f" (it has {', '.join(schema.names[:8])})" if schema.names else ""
        wanted = ("prompt", "chosen") if options.conversations in conversations.PREFERENCES else options.texts
        return f"{what} has no column {' or '.join(map(repr, wanted))}{columns}"
    for name, kind in kinds.items():
        if kind is not None and not _is_text(kind):
            return f"{not_text(name, options)}: the column is {kind}"
    return ""


def columns_of(schema: pa.Schema, options: ReadOptions) -> list[str]:
    """The columns at the top of the table in which the fields lie."""
    wanted = [*options.fields, *options.numbers]
    tops = [name if name in schema.names else name.split(".")[0] for name in wanted]
    tops += conversations.fields_of(options.conversations) if options.conversations else ()
    return [name for name in dict.fromkeys(tops) if name in schema.names]


def as_text(
    batch: pa.RecordBatch, numbers: Numbers, options: ReadOptions
) -> tuple[pa.Table, Numbers, list[Rejection]]:
    """The fields of the batch as strings, their rows' numbers, and the rows that cannot be read."""
    if options.one_by_one:
        return _row_by_row(batch, numbers, options)
    binary = pa.schema([(name, pa.binary()) for name in options.names])
    columns = [_field(batch, name).cast(pa.binary()) for name in options.names]
    raw = pa.table(columns, schema=binary)
    try:
        text = raw.cast(schema_of(options))
        text.validate(full=True)
        return text, numbers, []
    except pa.ArrowException:
        pass
    good, bad, rows = [], [], []
    for position, row in enumerate(raw.to_pylist()):
        try:
            rows.append({name: value if value is None else value.decode() for name, value in row.items()})
            good.append(position)
        except UnicodeDecodeError:
            bad.append(Rejection(int(numbers[position]), "invalid UTF-8"))
    return pa.Table.from_pylist(rows, schema=schema_of(options)), numbers[good], bad


def _row_by_row(
    batch: pa.RecordBatch, numbers: Numbers, options: ReadOptions
) -> tuple[pa.Table, Numbers, list[Rejection]]:
    """`as_text` where rows may be conversations, of lists and structs."""
    good, bad, rows = [], [], []
    for position in range(len(batch)):
        try:
            (record,) = batch.slice(position, 1).to_pylist()
            rows.append(text_fields(_without_nulls(record), options))
            good.append(position)
        except (ValueError, pa.ArrowException) as error:
            bad.append(Rejection(int(numbers[position]), first_line(error)))
    return pa.Table.from_pylist(rows, schema=schema_of(options)), numbers[good], bad


def _without_nulls(value: Any) -> Any:
    """`value` without keys whose value is null: Arrow gives every struct the keys of all."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _kind(schema: pa.Schema, name: str) -> Any:
    """The type of a field; None where there is none, `KeyError` where there are two."""
    if schema.names.count(name) > 1:
        raise KeyError(name)
    if name in schema.names:
        return schema.field(name).type
    kind: Any = None
    inside: Any = schema
    for key in name.split(".") if "." in name else []:
        names = inside.names if isinstance(inside, pa.Schema) else [field.name for field in inside]
        if names.count(key) > 1:
            raise KeyError(name)
        if key not in names:
            return None
        kind = inside.field(key).type
        inside = kind if pa.types.is_struct(kind) else pa.struct([])
    return kind


def _field(batch: pa.RecordBatch, name: str) -> Any:
    """The column of a field, nulls where there is none."""
    import pyarrow.compute as pc

    if name in batch.schema.names:
        found = batch.column(batch.schema.get_field_index(name))
    elif _kind(batch.schema, name) is None:
        return pa.nulls(len(batch), pa.binary())
    else:
        first, *keys = name.split(".")
        found = pc.struct_field(batch.column(batch.schema.get_field_index(first)), keys)
    if pa.types.is_dictionary(found.type):
        found = found.dictionary_decode()
    # Arrow has no way from a view to binary but by the string.
    return found.cast(pa.string()) if pa.types.is_string_view(found.type) else found


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    raw = (pa.types.is_null, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in (*text, *raw))


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
