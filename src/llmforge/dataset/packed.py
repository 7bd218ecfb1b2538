"""The dataset as training reads it: memory-mapped rows by number, and where those of each bin and category are."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.dataset.categories import row_categories
from llmforge.errors import UserError
from llmforge.sizes import refuse_special
from llmforge.steps import MANIFEST, Manifest, fingerprint_json, read_manifest

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
NEEDS = (
    "outputs.fingerprint",
    "outputs.tokenizer",
    "outputs.max_length",
    "outputs.categories",
    "metrics.parts",
)
PART = re.compile(r"part-\d{5,9}", re.ASCII)


@dataclass(frozen=True)
class Row:
    """One row: `input_ids` and `labels` (n,) int32, the label of a position being its own token or -100.

    `seq_lengths` (k,), `seq_categories` and `seq_bytes` (k,) describe the documents or pieces in it, in
    order; `seq_bytes` counts the UTF-8 bytes of a piece's unmasked text. The arrays are read-only views of
    the files.
    """

    input_ids: Int32
    labels: Int32
    seq_lengths: Int32
    seq_categories: list[str]
    seq_bytes: Int32


@dataclass(frozen=True)
class Part:
    directory: Path
    manifest: Manifest
    number: int

    def figures(self) -> dict[str, Any]:
        """Numbers of rows, tokens and bytes in it, and of the rows of each category."""
        made = self.manifest.metrics["parts"]
        if self.number >= len(made):
            raise UserError(
                f"{self.directory} is not one of the {len(made)} parts that llmforge prepare-data wrote; move it away."
            )
        return dict(made[self.number])


@dataclass(frozen=True)
class RowSet:
    """Rows of one bin, in the order of their numbers: runs of `counts` (k,) from `begins` (k,) on, int64."""

    begins: Int64
    counts: Int64

    def __len__(self) -> int:
        return int(self.counts.sum())

    def numbers(self, positions: Int64) -> Int64:
        """The numbers in the dataset of the rows at these positions of the set."""
        ends = np.cumsum(self.counts)
        run = np.searchsorted(ends, positions, side="right")
        found: Int64 = positions + (self.begins + self.counts - ends)[run]
        return found


@dataclass(frozen=True)
class CategoryRows:
    """The rows of one category: those of every bin, and how many tokens they hold."""

    bins: list[RowSet]
    tokens: int

    def __len__(self) -> int:
        return sum(map(len, self.bins))


class PackedDataset:
    """Rows of datasets that `prepare-data` wrote: the bins of each directory one after another, `bins`.

    `directories`: outputs of prepare-data, their `arrow` directories, or single parts. `rows` is their
    number, `tokens` all of their tokens, `valid_tokens` those that a loss is taken over (unmasked, and not
    the first of their piece), `bytes` the UTF-8 bytes of unmasked text, `documents_per_row` the most that a row has. Raises `UserError` for what is no
    dataset, and for datasets of different tokenizers. `max_length` is the largest of theirs.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        parts = [part for directory in directories for part in find_parts(Path(directory))]
        if not parts:
            raise UserError("no dataset was given; --data needs the output of llmforge prepare-data.")
        self.tokenizer_fingerprint: str = parts[0].manifest.outputs["tokenizer"]
        for part in parts:
            if part.manifest.outputs["tokenizer"] != self.tokenizer_fingerprint:
                raise UserError(
                    f"{part.directory} was prepared with another tokenizer than {parts[0].directory}; "
                    "prepare both with one."
                )
        self.fingerprint = fingerprint_json([[p.manifest.outputs["fingerprint"], p.number] for p in parts])
        self.max_length = max(int(part.manifest.outputs["max_length"]) for part in parts)
        figures = [part.figures() for part in parts]
        self.tokens, self.valid_tokens, self.bytes = (
            sum(int(one[key]) for one in figures) for key in ("tokens", "valid_tokens", "bytes")
        )
        self.categories = sorted({name for part in parts for name in part.manifest.outputs["categories"]})
        # Datasets of versions that packed all categories together do not count the rows of each.
        self.packed_by_category = all("categories" in one for one in figures)
        self._batches: list[Batch] = []
        self.bins: list[RowSet] = []
        self._length: int = 0
        for part in parts:
            batches = list(open_batches(part.directory))
            self._batches += batches
            rows = sum(len(batch) for batch in batches)
            self.bins.append(RowSet(np.array([self._length]), np.array([rows])))
            self._length += rows
        # As the rows have it, whatever the manifest says.
        self.documents_per_row = max(
            (int(np.diff(batch.offsets["seq_lengths"]).max()) for batch in self._batches if len(batch)),
            default=0,
        )
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return self._length

    @cached_property
    def by_category(self) -> dict[str, CategoryRows]:
        """The rows of each category, `mixed` those that hold several; reads the categories of all rows."""
        tokens: dict[str, int] = defaultdict(int)
        found: dict[str, list[list[tuple[Int64, Int64]]]] = defaultdict(lambda: [[] for _ in self.bins])
        last_rows = np.cumsum([len(rows) for rows in self.bins])
        for batch, end in zip(self._batches, self._ends.tolist(), strict=True):
            code, names = row_categories(batch.categories)
            lengths = np.diff(batch.offsets["input_ids"])
            for number, name in enumerate(names):
                mine = np.flatnonzero(code == number)
                if len(mine):
                    first = np.flatnonzero(np.diff(mine, prepend=-2) != 1)
                    runs = (mine[first] + end - len(batch), np.diff(first, append=len(mine)))
                    found[name][int(np.searchsorted(last_rows, end - 1, side="right"))].append(runs)
                    tokens[name] += int(lengths[mine].sum())
        nothing = np.zeros(0, np.int64)
        return {
            name: CategoryRows(
                [
                    RowSet(*(np.concatenate([nothing, *(one[i] for one in runs)]) for i in (0, 1)))
                    for runs in found[name]
                ],
                tokens[name],
            )
            for name in sorted(found)
        }

    def rows(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> list[Row]:
        """The rows with these numbers, in the order given."""
        wanted = np.asarray(indices, np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"row numbers are 0 to {len(self) - 1}, not {wanted.min()} to {wanted.max()}")
        batch = np.searchsorted(self._ends, wanted, side="right")
        for file in {self._batches[b].file for b in batch.tolist()}:
            file.refuse_truncated()
        return [
            self._batches[b].row(i - (int(self._ends[b - 1]) if b else 0))
            for b, i in zip(batch.tolist(), wanted.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class DataFile:
    """A file whose pages are read when rows are. Where it has become shorter, reading them would end the process
    with SIGBUS.
    """

    path: Path
    device: int
    inode: int
    size: int

    @staticmethod
    def of(path: Path) -> "DataFile":
        status = path.stat()
        return DataFile(path, status.st_dev, status.st_ino, status.st_size)

    def refuse_truncated(self) -> None:
        try:
            now = DataFile.of(self.path)
        except OSError:
            return  # deleted or moved: what was opened can still be read
        if (now.device, now.inode) == (self.device, self.inode) and now.size < self.size:
            raise UserError(
                f"{self.path} was truncated from {self.size:,} to {now.size:,} bytes while it was in use; prepare the data "
                "again."
            )


class Batch:
    """One record batch: the offsets and values of its lists, as views of `file`."""

    def __init__(self, batch: pa.RecordBatch, file: DataFile) -> None:
        self.file = file
        self.offsets, self.values = {}, {}
        for name in ("input_ids", "labels", "seq_lengths", "seq_bytes"):
            column = batch.column(name)
            self.offsets[name] = np.asarray(column.offsets)
            self.values[name] = np.asarray(column.values)
        self.categories = batch.column("seq_categories")
        self.count: int = batch.num_rows

    def __len__(self) -> int:
        return self.count

    def row(self, i: int) -> Row:
        def part(name: str) -> Int32:
            begin, end = self.offsets[name][i : i + 2]
            return self.values[name][begin:end]

        names = self.categories[i].as_py()
        return Row(part("input_ids"), part("labels"), part("seq_lengths"), names, part("seq_bytes"))


def open_batches(directory: Path) -> Iterator[Batch]:
    files = sorted(directory.glob("data-*.arrow"))
    if not files:
        raise UserError(f"{directory} contains no data-*.arrow file; prepare the data again.")
    for file in files:
        try:
            opened = DataFile.of(refuse_special(file))
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                yield from (Batch(batch, opened) for batch in stream)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file} is damaged ({str(error).splitlines()[0]}); prepare the data again."
            ) from error


def refuse_bytes(path: Path) -> None:
    """Raises `UserError` where the name `path` is no UTF-8: Arrow opens no such file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: its name is not valid UTF-8; rename it.") from None


def find_parts(directory: Path) -> list[Part]:
    """The parts in or at `directory`, with the manifest of the preparation that wrote them."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; --data needs the output of llmforge prepare-data.")
    resolved = directory.resolve()
    refuse_bytes(resolved)
    root = next((d for d in (resolved, *resolved.parents[:2]) if (d / MANIFEST).is_file()), None)
    if root is None:
        raise UserError(
            f"{directory} is not a finished output of llmforge prepare-data, nor a part of one "
            f"(no {MANIFEST} in or above it)."
        )
    manifest = read_manifest(root, "prepare-data", NEEDS)
    if resolved.name.startswith("part-"):
        found = [resolved]
    else:
        found = sorted(resolved.glob("part-*")) or sorted((resolved / "arrow").glob("part-*"))
    if not found:
        raise UserError(f"{directory} contains no part-00000; prepare the data again.")
    for path in found:
        if not PART.fullmatch(path.name):
            raise UserError(f"{path} was not written by llmforge prepare-data; move it away.")
    return [Part(path, manifest, int(path.name.removeprefix("part-"))) for path in found]
