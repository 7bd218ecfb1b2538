"""Growing a model to a larger tokenizer: only the embedding and the head are computed with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmforge.console import say, warn
from llmforge.corpus import ReadOptions
from llmforge.embedding.initializers.choice import Initialiser
from llmforge.embedding.options import Growth
from llmforge.embedding.rows import Filler, OldRows, look_at
from llmforge.errors import UsageError, UserError
from llmforge.steps import Finished, Outcome, Step, run_step
from llmforge.tokenizer import Tokenizer, load
from llmforge.weights.architecture import (
    VocabularyTensors,
    check_supported,
    find_vocabulary_tensors,
    with_vocabulary_size,
)
from llmforge.weights.completeness import check_complete
from llmforge.weights.config import needs_own_code, read_config, stating_tied
from llmforge.weights.files import copy_code, copy_legal_files, copy_tokenizer, write_configs
from llmforge.weights.floats import Float32, from_float32
from llmforge.weights.modules import empty_causal
from llmforge.weights.tensor import Tensor, write_all
from llmforge.weights.vocabulary import Vocabulary
from llmforge.weights.write import NewTensor, room_for, write_weights

STEP = "init-model"
WRITTEN_ROWS = 1024


def grow(
    source_dir: Path,
    tokenizer_dir: Path,
    output: Path,
    growth: Growth,
    *,
    corpus: Sequence[Path] = (),
    donor: Path | None = None,
    reading: ReadOptions | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Finished:
    """Writes the model of `source_dir`, grown to the tokenizer of `tokenizer_dir`, as the step directory `output`.

    `corpus` is what `align` and `focus` learn from, `donor` a model directory for `donor`. `trust_remote_code` lets
    the code that lies beside the source run, which tells whether its weights are complete.
    """
    growth.check_inputs(corpus, donor)
    step = Step(
        STEP,
        output,
        arguments={**growth.__dict__, **({"reading": asdict(reading)} if corpus and reading else {})},
        inputs=[source_dir, tokenizer_dir, *corpus, *([donor] if donor else [])],
        overwrite=overwrite,
    )

    def build(partial: Path) -> Outcome:
        source, target = load(source_dir), load(tokenizer_dir)
        initialiser = Initialiser(growth, source, target, corpus, donor, reading or ReadOptions())
        return _build(partial, output, initialiser, trust_remote_code)

    return run_step(step, build)


def _build(partial: Path, output: Path, initialiser: Initialiser, trust_remote_code: bool) -> Outcome:
    growth, source, target = initialiser.growth, initialiser.source, initialiser.target
    source_dir = source.directory
    config = read_config(source_dir)
    check_supported(config, source_dir)
    if not needs_own_code(config):
        empty_causal(source_dir)
    weights = check_complete(source_dir, trust_remote_code)
    tensors = find_vocabulary_tensors(weights, config, trust_remote_code)
    check_extends(source, target)
    vocabulary = _sizes(source_dir, tensors, source, target, growth)
    if tensors.tied and growth.head_init != "same":
        raise UsageError(
            f"{source_dir} is a tied model, whose embedding is its head: one rule makes its new rows. "
            "Leave out --head-init, or choose the rule by --init."
        )

    grown: dict[str, NewTensor] = {}
    reports: dict[str, Any] = {}
    for name, role in tensors.names().items():
        old = look_at(weights.tensors[name], source.size)
        if len(old.not_finite) and not growth.mend_rows:
            raise UserError(
                f"{weights.tensors[name].path}: {name} holds NaN or infinity in {len(old.not_finite):,} of "
                f"{source.size:,} rows ({_named(old.not_finite.tolist(), source)}); --mend-rows makes them the mean of "
                "the others, or get the model anew."
            )
        if role != "head_bias":
            reports[role] = _report(name, old, source)
        grown[name] = _grown(old, vocabulary, initialiser.filler(role, old))
    if tensors.tied:
        say(f"{source_dir} is tied: its new rows serve as embedding and head, by one rule ({growth.init})")

    shards = [
        [
            grown.get(name) or NewTensor.copy(weights.tensors[name])
            for name in shard
            if name not in tensors.aliases
        ]
        for shard in weights.shards
    ]
    with room_for(output, sum(tensor.size for shard in shards for tensor in shard)):
        write_weights(partial, shards, STEP)
        write_configs(
            partial, with_vocabulary_size(stating_tied(config, tensors.tied), vocabulary.padded), source_dir
        )
        copy_tokenizer(target.directory, partial)
        copy_code(source_dir, partial)
        copy_legal_files(source_dir, partial)
    return Outcome(
        outputs={"vocabulary": vocabulary.to_json(), "tokenizer": target.fingerprint},
        metrics={
            "tied": tensors.tied,
            "source_rows": tensors.rows,
            "new_rows": vocabulary.size - vocabulary.source,
            "padding_rows": vocabulary.padded - vocabulary.size,
            "new_rows_without_subtokens": len(initialiser.subtokens.empty),
            "new_rows_by_subtokens_instead": initialiser.fallbacks,
            "preflight": reports,
        },
    )


def check_extends(source: Tokenizer, target: Tokenizer) -> None:
    """Raises `UserError` unless every id of `source` means the same piece in `target`."""
    old, new = source.pieces(), target.pieces()
    if target.size < source.size:
        raise UserError(
            f"{target.directory} has {target.size:,} ids, fewer than {source.size:,} of {source.directory}: "
            "it is no extension of it; make one with llmforge init-tokenizer."
        )
    for i, piece in enumerate(old):
        if piece is not None and piece != new[i]:
            raise UserError(
                f"{target.directory} is no extension of the tokenizer in {source.directory}: id {i} is "
                f"{piece!r} there and {new[i]!r} here; make one with llmforge init-tokenizer."
            )


def _sizes(
    source_dir: Path, tensors: VocabularyTensors, source: Tokenizer, target: Tokenizer, growth: Growth
) -> Vocabulary:
    if tensors.rows < source.size:
        raise UserError(
            f"{source_dir} has {tensors.rows:,} embedding rows, but its tokenizer has {source.size:,} ids; "
            "it is not the tokenizer of this model."
        )
    multiple = growth.pad_to_multiple_of * growth.tp
    padded = -(-max(target.size, tensors.rows) // multiple) * multiple
    return Vocabulary(source.size, target.size, padded)


def _grown(old: OldRows, vocabulary: Vocabulary, filler: Filler) -> NewTensor:
    """The tensor of `old` with its old rows as they are, then new rows by `filler`, then padding rows of the
    mean.
    """
    tensor: Tensor = old.tensor
    new, padding = vocabulary.size - vocabulary.source, vocabulary.padded - vocabulary.size

    def write(file: BinaryIO) -> None:
        start = file.tell()
        tensor.copy_to(file, vocabulary.source)
        for row in old.not_finite:  # few, or the source would have been refused
            file.seek(start + int(row) * tensor.row_bytes)
            _write(file, old.mean[None], tensor.dtype)
        file.seek(start + vocabulary.source * tensor.row_bytes)
        for start in range(0, new, WRITTEN_ROWS):
            _write(file, filler(start, min(start + WRITTEN_ROWS, new)), tensor.dtype)
        _write(file, np.repeat(old.mean[None], padding, axis=0), tensor.dtype)

    return NewTensor.made(tensor.name, tensor.dtype, (vocabulary.padded, *tensor.shape[1:]), write)


def _write(file: BinaryIO, rows: Float32, dtype: str) -> None:
    write_all(file, from_float32(rows, dtype))


def _named(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    pieces = tokenizer.pieces()
    return ", ".join(f"{i} {pieces[i]!r}" for i in ids[:3]) + (" ..." if len(ids) > 3 else "")


def _report(name: str, old: OldRows, tokenizer: Tokenizer) -> Mapping[str, Any]:
    """What is odd about the old rows of `name`: said to the user, and returned for the manifest."""
    for ids, what in (
        (old.not_finite, "held NaN or infinity and are now the mean of the others"),
        (old.zero, "are zero, which gives infinite gradients in training, and are left out of every mean"),
        (old.untrained, "look untrained (tiny, or equal to another row)"),
    ):
        if len(ids):
            warn(f"{name}: {len(ids):,} old rows {what}: {_named(ids.tolist(), tokenizer)}")
    if not len(old.not_finite) + len(old.zero) + len(old.untrained):
        say(f"{name}: {len(old.norms):,} old rows, all finite and trained, median norm {old.median_norm:.3g}")
    return {
        "tensor": name,
        "median_norm": round(old.median_norm, 6),
        "not_finite": len(old.not_finite),
        "zero": len(old.zero),
        "untrained": len(old.untrained),
    }
