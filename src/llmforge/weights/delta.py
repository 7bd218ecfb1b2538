"""A tuned model as its difference from a base, and back, bit for bit.

    make:  d = bits(t) - bits(convert(b))  (mod 2^w)        apply:  bits(t) = bits(convert(b)) + d  (mod 2^w)

Differences of floating-point numbers cannot be undone exactly: b + (t - b) is rounded twice. So the difference is taken
of their w bits as integers, which is exact whatever they are. `convert` brings the base to the dtype of the tuned
tensor. Rows that only the tuned model has (new tokens) travel whole, as do tensors that the base lacks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from llmforge.errors import UserError
from llmforge.sizes import refuse_large
from llmforge.steps import Finished, Outcome, Step, run_step
from llmforge.weights.completeness import check_complete
from llmforge.weights.files import copy_side_files
from llmforge.weights.floats import BYTES, STORAGE, Array, from_float32, storage_dtype, to_float32
from llmforge.weights.options import DeltaApplyOptions, DeltaMakeOptions
from llmforge.weights.read import Weights, open_weights
from llmforge.weights.tensor import BLOCK_BYTES, Tensor, write_all
from llmforge.weights.write import NewTensor, enough_disk_space, write_weights

MAKE, APPLY = "delta-make", "delta-apply"
RECORD, STEM = "delta.json", "delta"
UNSIGNED = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}


@dataclass(frozen=True)
class Entry:
    """What a delta says of one tensor: the tuned `dtype`, how many leading rows of it are differences, and the
    `digest` (XXH3-128) of its tuned bytes.
    """

    dtype: str
    rows: int
    digest: str


def make(options: DeltaMakeOptions) -> Finished:
    """Writes the difference of `options.model` from `options.base` as the step directory `options.output`.

    Raises `UserError` where one of them is incomplete, or holds NaN or infinity.
    """
    base, model, output = options.base, options.model, options.output
    step = Step(MAKE, output, options.arguments(), [base, model], options.overwrite)

    def build(partial: Path) -> Outcome:
        both = check_complete(base), check_complete(model)
        for weights in both:
            for tensor in weights.tensors.values():
                tensor.check_finite()
        return write_delta(partial, output, *both)

    return run_step(step, build)


def apply(options: DeltaApplyOptions) -> Finished:
    """Writes the model that `options.delta` was made of, from its base, as the step directory `options.output`.

    Raises `UserError` before anything is written if the base does not hold the weights that the delta was made from.
    """
    base, delta, output = options.base, options.delta, options.output
    step = Step(APPLY, output, options.arguments(), [base, delta], options.overwrite)
    return run_step(step, lambda partial: write_tuned(partial, output, base, delta))


def write_delta(partial: Path, output: Path, base: Weights, target: Weights) -> Outcome:
    """Writes the difference of `target` from `base`, whatever tensors they hold, to `partial`, which becomes `output`."""
    entries: dict[str, Entry] = {}

    def difference(tensor: Tensor) -> NewTensor:
        origin, rows = _origin(tensor, base)

        def write(file: BinaryIO) -> None:
            digest = xxhash.xxh3_128()
            for tuned, before in _paired(tensor, origin, rows, tensor.dtype):
                digest.update(tuned.data)
                write_all(file, tuned - before)
            _rest(tensor, rows, file, digest)
            entries[tensor.name] = Entry(tensor.dtype, rows, digest.hexdigest())

        return NewTensor(tensor.name, _unsigned(tensor.dtype), tensor.shape, tensor.size, write)

    shards = [[difference(target.tensors[name]) for name in shard] for shard in target.shards]
    with enough_disk_space(output, target.size):
        write_weights(partial, shards, MAKE, STEM)
        copy_side_files(target.directory, partial)
        record = {
            "base": weights_fingerprint(base),
            "tensors": {name: vars(e) for name, e in entries.items()},
        }
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    whole = [name for name, entry in entries.items() if entry.rows == 0]
    extended = [name for name, entry in entries.items() if 0 < entry.rows < target.tensors[name].rows]
    return Outcome(
        outputs={"base": record["base"]},
        metrics={"tensors": len(entries), "grown_tensors": len(extended), "whole_tensors": len(whole)},
    )


def write_tuned(partial: Path, output: Path, base_dir: Path, delta_dir: Path) -> Outcome:
    """Writes the weights that `delta_dir` was made of to `partial`, which becomes `output`."""
    base, delta = open_weights(base_dir), open_weights(delta_dir, STEM)
    wanted, entries = _read_record(delta_dir, delta)
    if weights_fingerprint(base) != wanted:
        raise UserError(
            f"{base_dir} is not the base that {delta_dir} was made from (the fingerprints of their weights differ); "
            "use that base model."
        )

    def tuned(tensor: Tensor) -> NewTensor:
        entry = entries[tensor.name]
        origin = base.tensors.get(tensor.name)

        def write(file: BinaryIO) -> None:
            digest = xxhash.xxh3_128()
            for change, before in _paired(tensor, origin, entry.rows, entry.dtype):
                sums = change + before
                digest.update(sums.data)
                write_all(file, sums)
            _rest(tensor, entry.rows, file, digest)
            if digest.hexdigest() != entry.digest:
                raise UserError(
                    f"{delta_dir} is damaged (the checksum of {tensor.name} differs); copy it again."
                )

        return NewTensor(tensor.name, entry.dtype, tensor.shape, tensor.size, write)

    shards = [[tuned(delta.tensors[name]) for name in shard] for shard in delta.shards]
    with enough_disk_space(output, delta.size):
        write_weights(partial, shards, APPLY)
        copy_side_files(delta_dir, partial)
    return Outcome(metrics={"tensors": len(entries)})


def weights_fingerprint(weights: Weights) -> str:
    """The fingerprint of the tensors alone: the same however they are divided into files."""
    total = xxhash.xxh3_128()
    for name in sorted(weights.tensors):
        tensor = weights.tensors[name]
        digest = xxhash.xxh3_128()
        for start in range(0, tensor.size, BLOCK_BYTES):
            digest.update(tensor.read(start, min(start + BLOCK_BYTES, tensor.size)).data)
        total.update(json.dumps([name, tensor.dtype, tensor.shape, digest.hexdigest()]).encode())
    return f"xxh3:{total.hexdigest()}"


def _origin(tensor: Tensor, base: Weights) -> tuple[Tensor | None, int]:
    """The base's tensor of that name and the number of leading rows to subtract; (None, 0) if it cannot be."""
    origin = base.tensors.get(tensor.name)
    same_kind = origin is not None and (
        origin.dtype == tensor.dtype or {origin.dtype, tensor.dtype} <= set(STORAGE)
    )
    if origin is None or not same_kind or origin.shape[1:] != tensor.shape[1:] or tensor.dtype not in BYTES:
        return None, 0
    return origin, min(origin.rows, tensor.rows)


def _paired(tensor: Tensor, origin: Tensor | None, rows: int, dtype: str) -> Iterator[tuple[Array, Array]]:
    """Blocks of the first `rows` rows of `tensor` and of `origin`, converted to `dtype`, as unsigned integers."""
    if origin is None or not rows:
        return
    kind = np.dtype(f"<u{BYTES[dtype]}")
    step = max(1, BLOCK_BYTES // max(tensor.row_bytes, origin.row_bytes, 1))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        before = origin.read(first * origin.row_bytes, last * origin.row_bytes)
        if origin.dtype != dtype:
            converted = from_float32(
                to_float32(before.view(storage_dtype(origin.dtype)), origin.dtype), dtype
            )
            before = np.ascontiguousarray(converted).view(np.uint8)
        yield tensor.read(first * tensor.row_bytes, last * tensor.row_bytes).view(kind), before.view(kind)


def _rest(tensor: Tensor, rows: int, file: BinaryIO, digest: "xxhash.xxh3_128") -> None:
    """Writes what follows the first `rows` rows, as it is."""
    for start in range(rows * tensor.row_bytes, tensor.size, BLOCK_BYTES):
        block = tensor.read(start, min(start + BLOCK_BYTES, tensor.size))
        digest.update(block.data)
        write_all(file, block)


def _unsigned(dtype: str) -> str:
    """Stored as an integer, so that nobody takes a delta for weights."""
    return UNSIGNED[BYTES[dtype]] if dtype in BYTES else dtype


def _read_record(delta_dir: Path, delta: Weights) -> tuple[str, dict[str, Entry]]:
    path = delta_dir / RECORD
    try:
        record: dict[str, Any] = json.loads(refuse_large(path).read_text(encoding="utf-8"))
        entries = {name: Entry(**entry) for name, entry in record["tensors"].items()}
        if set(entries) == set(delta.tensors):
            return str(record["base"]), entries
    except FileNotFoundError:
        raise UserError(
            f"{delta_dir} is not a delta (it has no {RECORD}); create one with llmforge delta make."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"{path} does not match the tensors of the delta; copy the delta again.")
