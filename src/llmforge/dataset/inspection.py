"""What a dataset contains: composition by bin and category, lengths, fill, and rows as they will be read."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmforge.dataset.categories import row_categories
from llmforge.dataset.packed import PackedDataset, Row, find_parts, open_batches
from llmforge.dataset.shuffle import permutation
from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer, load

IGNORED = -100
LONGEST_SAMPLE_TOKENS = 400


def inspect_dataset(
    directories: Sequence[Path],
    tokenizer_dir: Path | None = None,
    samples: int = 3,
    seed: int = 42,
    tokenizer_scheme: str | None = None,
) -> dict[str, Any]:
    """Counts every row of the datasets, bucket by bucket, and decodes a few with the tokenizer, if it is
    given.

    `lengths` counts documents and pieces by tokens: the key is the largest of a power of two, so 128 is 65 to
    128.
    """
    dataset = PackedDataset(directories)
    tokenizer = load(tokenizer_dir, tokenizer_scheme) if tokenizer_dir else None
    if tokenizer and tokenizer.fingerprint != dataset.tokenizer_fingerprint:
        raise UserError(f"{tokenizer_dir} is not the tokenizer that {directories[0]} was prepared with.")
    lengths: dict[int, int] = defaultdict(int)
    buckets = []
    for part in [part for directory in directories for part in find_parts(Path(directory))]:
        tokens: dict[str, int] = defaultdict(int)
        pieces: dict[str, int] = defaultdict(int)
        rows_of: dict[str, int] = defaultdict(int)
        rows = trained = 0
        for batch in open_batches(part.directory):
            rows += len(batch)
            size = batch.values["seq_lengths"].astype(np.int64)
            names = pa.compute.dictionary_encode(batch.categories.flatten())
            code = np.asarray(names.indices)
            row_code, row_names = row_categories(batch.categories)
            for c, count in zip(*np.unique(row_code, return_counts=True), strict=True):
                rows_of[row_names[c]] += int(count)
            for c, name in enumerate(names.dictionary.to_pylist()):
                tokens[name] += int(size[code == c].sum())
                pieces[name] += int((code == c).sum())
            trained += int((batch.values["labels"] != IGNORED).sum())
            power = np.ceil(np.log2(np.maximum(size, 1))).astype(np.int64)
            for p, count in zip(*np.unique(power, return_counts=True), strict=True):
                lengths[2 ** int(p)] += int(count)
        total = sum(tokens.values())
        buckets.append(
            {
                "part": str(part.directory),
                "rows": rows,
                "tokens": total,
                "trained_tokens": trained,
                "fill": total / max(1, rows * int(part.manifest.outputs["max_length"])),
                "categories": {n: {"tokens": tokens[n], "pieces": pieces[n]} for n in sorted(tokens)},
                "rows_by_category": dict(sorted(rows_of.items())),
            }
        )
    rows, total = len(dataset), dataset.tokens
    chosen = permutation(seed, len(dataset))[:samples].tolist()
    return {
        "directories": [str(directory) for directory in directories],
        "fingerprint": dataset.fingerprint,
        "tokenizer": dataset.tokenizer_fingerprint,
        "max_length": dataset.max_length,
        "documents_per_row": dataset.documents_per_row,
        "rows": rows,
        "tokens": total,
        "bytes": dataset.bytes,
        "bytes_per_token": dataset.bytes / max(1, total),
        "fill": total / max(1, rows * dataset.max_length),
        "buckets": buckets,
        "lengths": dict(sorted(lengths.items())),
        "decoded": tokenizer is not None,
        "samples": [
            _sample(number, row, tokenizer) for number, row in zip(chosen, dataset.rows(chosen), strict=True)
        ],
    }


def _sample(number: int, row: Row, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A row piece by piece, each a list of stretches that are trained or masked; the first tokens of a long
    one.
    """
    pieces, left = [], LONGEST_SAMPLE_TOKENS
    ends = np.cumsum(row.seq_lengths)
    for end, length, category in zip(
        ends.tolist(), row.seq_lengths.tolist(), row.seq_categories, strict=True
    ):
        ids, labels = row.input_ids[end - length : end], row.labels[end - length : end]
        shown = min(length, left)
        left -= shown
        stretches = [
            {
                "masked": masked,
                "text": tokenizer.decode(part.tolist()) if tokenizer else " ".join(map(str, part)),
            }
            for masked, part in _stretches(ids[:shown], labels[:shown])
        ]
        pieces.append({"category": category, "tokens": length, "shown": shown, "stretches": stretches})
    return {"row": number, "tokens": len(row.input_ids), "pieces": pieces}


def _stretches(ids: Any, labels: Any) -> Iterator[tuple[bool, Any]]:
    masked = labels == IGNORED
    cuts = np.flatnonzero(np.diff(masked)) + 1
    for part, flag in zip(np.split(ids, cuts), np.split(masked, cuts), strict=True):
        if len(part):
            yield bool(flag[0]), part
