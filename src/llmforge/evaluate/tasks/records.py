"""The records of question files (CSV, JSONL, JSON, Parquet; text also as .gz), each with its file and line for messages."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmforge.corpus.sources import printable
from llmforge.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
LARGEST_BYTES = 1 << 30  # MMLU has 8 MB: beyond this it is no file of questions
LARGEST_CELL = 1 << 24


def csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) of every row that is not empty, a header included; cells may hold line breaks."""
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(
        io.StringIO(_text(path), newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True
    )
    line = 1
    while True:
        place = f"{printable(path)}, line {line}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{place}: broken CSV ({error}).") from None
        line = reader.line_num + 1
        if any(cell.strip() for cell in row):
            yield place, row


def records(path: Path) -> Iterator[tuple[str, dict[Any, Any]]]:
    """(place, fields) of every record; CSV files begin with the names of their fields."""
    kind = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _csv_records(path)
    elif kind == ".parquet":
        yield from _parquet_records(path)
    elif kind == ".json":
        for number, record in enumerate(json_list(path), start=1):
            yield (
                f"{printable(path)}, record {number}",
                _mapping(record, f"{printable(path)}, record {number}"),
            )
    else:
        for number, line in enumerate(_text(path).split("\n"), start=1):
            if line.strip():
                place = f"{printable(path)}, line {number}"
                yield place, _mapping(_parsed(line, place), place)


def fields_of(path: Path) -> list[str]:
    """The names of a file's fields: the first row of CSV, else those of the first record; for telling layouts apart."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return next(csv_rows(path), ("", []))[1]
    return [str(name) for name in next((record for _, record in records(path)), {})]


def json_list(path: Path) -> list[Any]:
    """The records of a JSON file: a list, or an object that holds one list (`example` of GAOKAO-Bench, `data`)."""
    value = _parsed(_text(path), printable(path))
    if isinstance(value, dict):
        lists = [one for one in value.values() if isinstance(one, list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list):
        raise UserError(f"{printable(path)} is no list of questions, nor an object that holds one.")
    return value


def _csv_records(path: Path) -> Iterator[tuple[str, dict[Any, Any]]]:
    rows = csv_rows(path)
    _, header = next(rows, ("", []))
    for place, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{place}: {len(row)} cells, where the header has {len(header)} ({', '.join(header)[:80]}); "
                "a comma inside a text needs quotes around it."
            )
        yield place, dict(zip(header, row, strict=True))


def _parquet_records(path: Path) -> Iterator[tuple[str, dict[Any, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(4096):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{printable(path)}, row {number}", record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{printable(path)} is no parquet file that can be read ({str(error).splitlines()[0].rstrip('.')})."
        ) from None


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST_BYTES:
        raise UserError(f"{printable(path)} is larger than 1 GiB, which no file of questions is.")
    raw = _bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{printable(path)}, line {line}: invalid UTF-8; convert the file (iconv -f GB18030 -t UTF-8 where it is in "
            "GBK)."
        ) from None


def _bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            raw = file.read(LARGEST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{printable(path)} is no gzip file that can be read ({error}).") from None
    if len(raw) > LARGEST_BYTES:
        raise UserError(f"{printable(path)} unpacks to more than 1 GiB, which no file of questions does.")
    return raw


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = (
            f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) and error.lineno > 1 else ""
        )
        raise UserError(f"{place}{where}: broken JSON.") from None


def _mapping(record: Any, place: str) -> dict[Any, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{place}: no JSON object.")
    return record
