"""Models merged into one, tensor by tensor: a block of 16 MB of each model is in memory at a time.

The model with the most tokens gives the other files, the dtype, and the padding rows. Rows of tokens that some models lack
(they were grown since) are the weighted mean of those of the models that have them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmforge.errors import UserError
from llmforge.steps import Finished, Outcome, Step, run_step
from llmforge.weights import merging
from llmforge.weights.architecture import VocabularyTensors, find_vocabulary_tensors
from llmforge.weights.completeness import check_complete
from llmforge.weights.config import stating_tied
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.export import model_directory
from llmforge.weights.files import copy_code, copy_legal_files, copy_tokenizer, write_configs
from llmforge.weights.floats import NAMES, STORAGE, all_finite, from_float32
from llmforge.weights.merging.base import Method, Rows
from llmforge.weights.options import MergeOptions
from llmforge.weights.read import Weights
from llmforge.weights.tensor import BLOCK_BYTES, Tensor, write_all
from llmforge.weights.write import NewTensor, enough_disk_space, packed, write_weights

STEP = "merge"
SHARD_BYTES = 5_000_000_000
CHECKPOINT = re.compile(r"epoch-(\d+)_step-(\d+)")
# What changes what the same weights compute, where both configurations state it.
MEANING = (
    *("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rope_theta"),
    *("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "sliding_window", "num_experts_per_tok"),
)


@dataclass(frozen=True)
class Model:
    """One of the models: `size` of its rows belong to tokens."""

    directory: ModelDirectory
    weights: Weights
    tables: VocabularyTensors
    size: int

    @staticmethod
    def read(path: Path, trust_remote_code: bool) -> "Model":
        directory, weights = ModelDirectory(path), check_complete(path, trust_remote_code)
        tables = find_vocabulary_tensors(weights, directory.stated, trust_remote_code)
        return Model(directory, weights, tables, directory.vocabulary.size)

    def table(self, role: str) -> Tensor | None:
        """The tensor with a row for each token that has this `role`; the head of a tied model is its embedding."""
        return self.tables.by_role().get("embedding" if role == "head" and self.tables.tied else role)

    def others(self) -> dict[str, Tensor]:
        """All other tensors by name."""
        left = {*self.tables.names(), *self.tables.aliases}
        return {name: tensor for name, tensor in self.weights.tensors.items() if name not in left}


def merge(options: MergeOptions) -> Finished:
    """Writes the merged model as the step directory `options.output`.

    Raises `UserError` for models of other shapes, and of vocabularies of which none extends all others.
    """
    method = merging.find(options.method)
    paths = [found for path in options.models for found in _chosen(path, options.checkpoints)]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise UserError(f"--models {twice} is given twice; give it a larger weight instead.")
    weights = options.weights or method.default(len(paths))
    if len(weights) != len(paths):
        raise UserError(f"--weights has {len(weights)} numbers for {len(paths)} models; give one for each.")
    method.check(weights)
    base = [model_directory(options.base)] if options.base else []
    arguments = {"method": options.method, "weights": weights, "dtype": options.dtype}
    step = Step(STEP, options.output, arguments, inputs=[*base, *paths], overwrite=options.overwrite)

    def build(partial: Path) -> Outcome:
        models = [Model.read(path, options.trust_remote_code) for path in (*base, *paths)]
        return _build(partial, options, models, method, weights)

    return run_step(step, build)


def _chosen(path: Path, checkpoints: int | None) -> list[Path]:
    """The model directory of `path`; or those of the newest `checkpoints` checkpoints of the training `path`."""
    if checkpoints is None:
        return [model_directory(path).resolve()]
    if not path.is_dir():
        raise UserError(f"{path} is not the directory of a training; give the --output of llmforge train.")
    numbers = {one: (int(m[2]), int(m[1])) for one in path.iterdir() if (m := CHECKPOINT.fullmatch(one.name))}
    if len(numbers) < checkpoints:
        raise UserError(f"--checkpoints {checkpoints}: {path} has {len(numbers)} checkpoints.")
    newest = sorted(numbers, key=lambda one: numbers[one])[-checkpoints:]
    return [model_directory(one).resolve() for one in newest]


def _build(
    partial: Path, options: MergeOptions, models: Sequence[Model], method: Method, weights: Sequence[float]
) -> Outcome:
    giver = max(models, key=lambda model: (model.size, not model.tables.tied))
    for model in models:
        _check_goes_with(model, giver)
    dtype = None if options.dtype == "stored" else NAMES[options.dtype]
    roles, others = giver.tables.names(), [model.others() for model in models]
    planned: list[NewTensor] = []
    for name, tensor in giver.weights.tensors.items():
        if name in giver.tables.aliases:
            continue
        same = [tensors.get(name) for tensors in others]
        sizes = [giver.size] * len(models)
        if name in roles:
            same = [model.table(roles[name]) for model in models]
            sizes = [min(model.size, giver.size) for model in models]
        found = [one for one in same if one is not None]
        assert len(found) == len(models)
        if tensor.dtype not in STORAGE:
            planned.append(_equal(tensor, found))
        elif name in roles:
            planned.append(_table(tensor, found, sizes, method, weights, dtype))
        else:
            parts = [([Rows(one, 0, one.rows) for one in found], None)]
            planned.append(_sum(tensor, parts, method, weights, dtype))
    config = stating_tied(giver.directory.stated, giver.tables.tied)
    if dtype:
        config = {**config, "torch_dtype": options.dtype}
        config.pop("dtype", None)
    with enough_disk_space(options.output, sum(tensor.size for tensor in planned)):
        write_weights(partial, packed(planned, SHARD_BYTES), STEP)
        write_configs(partial, config, giver.directory.path)
        for copy in (copy_tokenizer, copy_code, copy_legal_files):
            copy(giver.directory.path, partial)
    vocabulary = giver.directory.vocabulary
    return Outcome(
        outputs={"vocabulary": vocabulary.to_json(), "tokenizer": giver.directory.tokenizer.fingerprint},
        metrics={
            "models": len(models),
            "tensors": len(planned),
            "rows_of_some": giver.size - min(model.size for model in models),
        },
    )


def _check_goes_with(model: Model, giver: Model) -> None:
    """Raises `UserError` unless `model` has the shapes of `giver`, and a vocabulary that the other's extends."""
    ours, theirs = model.directory, giver.directory
    for key in MEANING:
        one, other = ours.stated.get(key), theirs.stated.get(key)
        if one is not None and other is not None and one != other:
            raise UserError(f"{ours} and {theirs} cannot be merged: {key} is {one} and {other}.")
    shapes, wanted = model.others(), giver.others()
    for name in sorted({*shapes, *wanted}):
        one, other = (list(all_[name].shape) if name in all_ else "missing" for all_ in (shapes, wanted))
        if one != other:
            raise UserError(f"{ours} and {theirs} cannot be merged: {name} is {one} and {other}.")
    for role, table in giver.tables.by_role().items():
        other_table = model.table(role)
        if other_table is None or other_table.shape[1:] != table.shape[1:]:
            raise UserError(
                f"{ours} and {theirs} cannot be merged: {table.name} has other rows, or one has none."
            )
    if giver.tables.tied and not model.tables.tied:
        raise UserError(
            f"{ours} and {theirs} cannot be merged: the one with fewer tokens has a head of its own, the other has "
            "none; resize it with llmforge init-model --untie."
        )
    if model.size == giver.size and ours.tokenizer.fingerprint == theirs.tokenizer.fingerprint:
        return
    pieces = zip(ours.tokenizer.pieces(), theirs.tokenizer.pieces(), strict=False)
    for number, (piece, other_piece) in enumerate(pieces):
        if piece is not None and piece != other_piece:
            raise UserError(
                f"{ours} and {theirs} cannot be merged: id {number} is {piece!r} and {other_piece!r}. The vocabulary of one "
                "model must extend those of all others."
            )
    if model.size == giver.size:
        raise UserError(
            f"{ours} and {theirs} cannot be merged: their tokenizers split texts in different ways."
        )


def _equal(tensor: Tensor, same: Sequence[Tensor]) -> NewTensor:
    """A tensor of whole numbers, which no arithmetic is done with."""
    for one in same:
        if one.read(0, one.size).tobytes() != tensor.read(0, tensor.size).tobytes():
            raise UserError(f"{one.path} and {tensor.path} cannot be merged: {tensor.name} differs.")
    return NewTensor.copy(tensor)


def _table(
    tensor: Tensor,
    found: Sequence[Tensor],
    sizes: Sequence[int],
    method: Method,
    weights: Sequence[float],
    dtype: str | None,
) -> NewTensor:
    """The tensor with a row for each token: in ranges of rows that the same models have, then padding rows as they are."""
    parts: list[tuple[list[Rows], list[float] | None]] = []
    begin = 0
    for end in sorted(set(sizes)):
        having = [number for number, size in enumerate(sizes) if size >= end]
        rows = [Rows(found[number], begin, end) for number in having]
        mean = None
        if len(having) < len(sizes):
            shift = len(sizes) - len(weights)  # the base has no weight of its own
            mine = [weights[n - shift] if n >= shift else 0.0 for n in having]
            mine = mine if min(mine) >= 0 and sum(mine) > 0 else [1.0] * len(mine)
            mean = [weight / sum(mine) for weight in mine]
        parts.append((rows, mean))
        begin = end
    if begin < tensor.rows:
        parts.append(([Rows(tensor, begin, tensor.rows)], [1.0]))
    return _sum(tensor, parts, method, weights, dtype)


def _sum(
    tensor: Tensor,
    parts: Sequence[tuple[Sequence[Rows], Sequence[float] | None]],
    method: Method,
    weights: Sequence[float],
    dtype: str | None,
) -> NewTensor:
    """A tensor like `tensor`, of `parts` one after the other: rows of some models with the factors of each, None for those
    of the method.
    """
    wanted = dtype or tensor.dtype

    def write(file: BinaryIO) -> None:
        for rows, given in parts:
            factors = given if given is not None else method.factors(rows, weights)
            used = [(one, np.float32(f)) for one, f in zip(rows, factors, strict=True) if f]
            if len(used) == 1 and used[0][1] == 1 and used[0][0].tensor.dtype == wanted:
                _copy(used[0][0], file)
                continue
            for blocks in zip(*(one.blocks() for one, _ in used), strict=True):
                total = blocks[0] * used[0][1]
                for block, (_, factor) in zip(blocks[1:], used[1:], strict=True):
                    total += block * factor
                merged = from_float32(total, wanted)
                if not all_finite(merged, wanted):
                    for one, _ in used:
                        one.tensor.check_finite()
                    raise UserError(
                        f"{tensor.name}: merged values are too large for {wanted}; use --dtype bfloat16 or float32."
                    )
                write_all(file, merged)

    return NewTensor.made(tensor.name, wanted, tensor.shape, write)


def _copy(rows: Rows, file: BinaryIO) -> None:
    tensor = rows.tensor
    tensor.check_finite(rows.end)
    for start in range(rows.begin * tensor.row_bytes, rows.end * tensor.row_bytes, BLOCK_BYTES):
        write_all(file, tensor.read(start, min(start + BLOCK_BYTES, rows.end * tensor.row_bytes)))


def summary(metrics: dict[str, Any]) -> str:
    some = metrics["rows_of_some"]
    return f"{metrics['models']} models, {metrics['tensors']:,} tensors" + (
        f"; the rows of {some:,} tokens are of the models that have them" if some else ""
    )
