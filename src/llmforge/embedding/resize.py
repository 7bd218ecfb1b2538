"""Resizing a model for a larger tokenizer: only the embedding and the head are computed with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmforge.console import say, warn
from llmforge.corpus import ReadOptions
from llmforge.embedding.initializers.base import InitContext
from llmforge.embedding.options import SAME, ResizeOptions
from llmforge.embedding.rows import Filler, NewRows, OldRows, look_at, with_median_norm
from llmforge.errors import UsageError, UserError
from llmforge.steps import Finished, Outcome, Step, remove_tree, run_step
from llmforge.tokenizer import Tokenizer, load
from llmforge.weights.architecture import (
    VocabularyTensors,
    check_one_table,
    check_supported,
    find_vocabulary_tensors,
    with_vocabulary_size,
)
from llmforge.weights.completeness import check_complete
from llmforge.weights.config import needs_own_code, refuse_own_code, stating_tied
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.files import copy_code, copy_legal_files, copy_tokenizer, write_configs
from llmforge.weights.floats import Float32, from_float32
from llmforge.weights.modules import empty_causal
from llmforge.weights.tensor import Tensor, write_all
from llmforge.weights.vocabulary import Vocabulary
from llmforge.weights.write import NewTensor, enough_disk_space, write_weights

STEP = "init-model"
WORK = ".work"
WRITTEN_ROWS = 1024


def resize(
    source_dir: Path,
    tokenizer_dir: Path,
    output: Path,
    options: ResizeOptions,
    *,
    corpus: Sequence[Path] = (),
    donor: Path | None = None,
    reading: ReadOptions | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Finished:
    """Writes the model of `source_dir`, resized for the tokenizer of `tokenizer_dir`, as the step directory `output`.

    `corpus` are the texts, and `donor` is the model directory, that initializations may learn from. `trust_remote_code`
    lets the code that lies beside the source run, which tells whether its weights are complete.
    """
    options.check_inputs(corpus, donor)
    step = Step(
        STEP,
        output,
        arguments={**options.arguments(), **({"reading": reading.arguments()} if corpus and reading else {})},
        inputs=[source_dir, tokenizer_dir, *corpus, *([donor] if donor else [])],
        overwrite=overwrite,
        resumable=any(one.resumable for one in options.chosen().values()),
    )

    def build(partial: Path) -> Outcome:
        context = InitContext(
            options=options,
            source=load(source_dir),
            target=load(tokenizer_dir),
            old={},
            corpus=corpus,
            reading=reading or ReadOptions(),
            donor=donor,
            work=partial / WORK,
            trust_remote_code=trust_remote_code,
        )
        return _build(partial, output, context)

    return run_step(step, build)


def _build(partial: Path, output: Path, context: InitContext) -> Outcome:
    options, source, target = context.options, context.source, context.target
    source_dir = source.directory
    model = ModelDirectory(source_dir)
    config = model.stated
    check_supported(config, source_dir)
    check_one_table(config, source_dir)
    if not needs_own_code(config):
        empty_causal(model.config, source_dir)
    elif any(one.runs_model for one in options.chosen().values()) and not context.trust_remote_code:
        refuse_own_code(source_dir)
    weights = check_complete(source_dir, context.trust_remote_code)
    tensors = find_vocabulary_tensors(weights, config, context.trust_remote_code)
    check_extends(source, target)
    vocabulary = _sizes(source_dir, tensors, source, target, options)
    if options.untie:
        tensors = untied(model, tensors)
        config = {**config, "tie_word_embeddings": False}
    if tensors.tied and options.head_init != SAME:
        raise UsageError(
            f"{source_dir} is a tied model: its embedding is also its head. "
            "Leave out --head-init; --init applies to both. Or give --untie."
        )

    reports: dict[str, Any] = {}
    names = {role: name for name, role in tensors.names().items()}
    for role, tensor in tensors.by_role().items():
        name = tensor.name
        old = context.old[role] = look_at(tensor, source.size)
        if len(old.not_finite) and not options.replace_nan_rows:
            raise UserError(
                f"{tensor.path}: {name} contains NaN or infinity in {len(old.not_finite):,} of "
                f"{source.size:,} rows ({_named(old.not_finite.tolist(), source)}); --replace-nan-rows replaces them by the mean of "
                "the others; or download the model again."
            )
        if role != "head_bias":
            reports[role] = _report(name, old, source)
    new = _new_rows(context)
    resized = {name: _resized(context.old[role], vocabulary, new[role].fill) for role, name in names.items()}
    if tensors.tied:
        say(f"{source_dir} is tied: new rows are shared by embedding and head ({options.init})")

    shards = [
        [
            resized.get(name) or NewTensor.copy(weights.tensors[name])
            for name in shard
            if name not in tensors.aliases
        ]
        for shard in weights.shards
    ]
    if options.untie:
        shards[-1].append(resized[names["head"]])
    with enough_disk_space(output, sum(tensor.size for shard in shards for tensor in shard)):
        write_weights(partial, shards, STEP)
        write_configs(
            partial, with_vocabulary_size(stating_tied(config, tensors.tied), vocabulary.padded), source_dir
        )
        copy_tokenizer(target.directory, partial)
        copy_code(source_dir, partial)
        copy_legal_files(source_dir, partial)
    remove_tree(context.work)
    return Outcome(
        outputs={"vocabulary": vocabulary.to_json(), "tokenizer": target.fingerprint},
        metrics={
            "tied": tensors.tied,
            "source_rows": tensors.rows,
            "new_rows": vocabulary.size - vocabulary.source,
            "padding_rows": vocabulary.padded - vocabulary.size,
            "new_rows_without_subtokens": len(context.subtokens.empty),
            "new_rows_by_subtokens_instead": {
                role: made.by_subtokens for role, made in new.items() if made.by_subtokens is not None
            },
            "preflight": reports,
            **({"initialization": context.figures} if context.figures else {}),
        },
    )


def _new_rows(context: InitContext) -> dict[str, NewRows]:
    """The new rows of each role, by the initialization that is chosen for it."""
    options = context.options
    context.work.mkdir(exist_ok=True)
    made: dict[str, NewRows] = {}
    for name, initializer in options.chosen().items():
        roles = [role for role in context.old if options.name_for(role) == name]
        made |= initializer.make(context, [role for role in roles if role in initializer.makes])
        for role in roles:
            if role not in made:
                made[role] = replace(
                    context.mixed(role, context.subtokens), by_subtokens=len(context.subtokens)
                )
            if count := made[role].by_subtokens:
                say(f"{role}: {count:,} new tokens are unknown to {name} and made from their sub-tokens")
    if options.norm_correction:
        for role in made.keys() - {"head_bias"}:
            made[role] = replace(made[role], fill=with_median_norm(made[role].fill, context.old[role]))
    return made


def untied(model: ModelDirectory, tensors: VocabularyTensors) -> VocabularyTensors:
    """`tensors` of a tied model with a head of its own, whose old rows are those of the embedding."""
    if not tensors.tied:
        raise UsageError(f"--untie: {model} has a head of its own already; leave it out.")
    causal = empty_causal(model.config, model.path)
    head = causal.get_output_embeddings()
    (name,) = (name for name, module in causal.named_modules() if module is head)
    copy = replace(tensors.embedding, name=f"{name}.weight")
    return replace(tensors, head=copy, aliases=tuple({*tensors.aliases, copy.name}))


def check_extends(source: Tokenizer, target: Tokenizer) -> None:
    """Raises `UserError` unless every id of `source` means the same piece in `target`."""
    old, new = source.pieces(), target.pieces()
    if target.size < source.size:
        raise UserError(
            f"{target.directory} has {target.size:,} ids, fewer than {source.size:,} of {source.directory}: "
            "it does not extend that tokenizer; create one that does with llmforge init-tokenizer."
        )
    for i, piece in enumerate(old):
        if piece is not None and piece != new[i]:
            raise UserError(
                f"{target.directory} does not extend the tokenizer in {source.directory}: id {i} is "
                f"{piece!r} there and {new[i]!r} here; create one that does with llmforge init-tokenizer."
            )


def _sizes(
    source_dir: Path, tensors: VocabularyTensors, source: Tokenizer, target: Tokenizer, options: ResizeOptions
) -> Vocabulary:
    if tensors.rows < source.size:
        raise UserError(
            f"{source_dir} has {tensors.rows:,} embedding rows, but its tokenizer has {source.size:,} ids; "
            "it is not the tokenizer of this model."
        )
    multiple = options.pad_to_multiple_of * options.tp
    padded = -(-max(target.size, tensors.rows) // multiple) * multiple
    return Vocabulary(source.size, target.size, padded)


def _resized(old: OldRows, vocabulary: Vocabulary, filler: Filler) -> NewTensor:
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
        (old.zero, "are zero, which gives infinite gradients in training, and are excluded from every mean"),
        (old.untrained, "look untrained (tiny, or equal to another row)"),
    ):
        if len(ids):
            warn(f"{name}: {len(ids):,} old rows {what}: {_named(ids.tolist(), tokenizer)}")
    if not len(old.not_finite) + len(old.zero) + len(old.untrained):
        say(f"{name}: {len(old.norms):,} old rows, all finite and trained; median norm {old.median_norm:.3g}")
    return {
        "tensor": name,
        "median_norm": round(old.median_norm, 6),
        "not_finite": len(old.not_finite),
        "zero": len(old.zero),
        "untrained": len(old.untrained),
    }
