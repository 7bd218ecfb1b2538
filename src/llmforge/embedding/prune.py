"""`prune-vocabulary`: a tokenizer without the tokens that texts do not use, and its model without their rows."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmforge.console import progress
from llmforge.corpus import Reader, ReadOptions
from llmforge.embedding.prune_options import PruneOptions
from llmforge.embedding.rows import Bool, Int64
from llmforge.errors import UserError
from llmforge.steps import Finished, Outcome, Step, run_step
from llmforge.tokenizer import Tokenizer, load
from llmforge.tokenizer.expand import write_tokenizer
from llmforge.tokenizer.files import tokenizer_files
from llmforge.tokenizer.inside import Inside
from llmforge.tokenizer.loading import from_definition
from llmforge.tokenizer.pruning import Renumbering, protected, pruned_definition, removal_order
from llmforge.tokenizer.verify import sentencepiece_ids
from llmforge.weights.architecture import (
    check_one_table,
    check_supported,
    find_vocabulary_tensors,
    with_vocabulary_size,
)
from llmforge.weights.completeness import check_complete
from llmforge.weights.config import read_config, refuse_own_code, stating_tied
from llmforge.weights.files import GENERATION_CONFIG, copy_code, copy_legal_files, write_configs, write_json
from llmforge.weights.read import open_weights
from llmforge.weights.tensor import BLOCK_BYTES, Tensor, write_all
from llmforge.weights.verify import verify_pruned
from llmforge.weights.vocabulary import Vocabulary, vocabulary
from llmforge.weights.write import NewTensor, enough_disk_space, write_weights

STEP = "prune-vocabulary"
LIST = "pruned.jsonl"
NAMES_IDS = ("_token_id", "_token_ids", "_token_index")
LISTS_IDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")


def prune(options: PruneOptions, data: Sequence[Path], keep_data: Sequence[Path]) -> Finished:
    """Writes the step directory `options.output`: the tokenizer, `pruned.jsonl` with what left, and the model if one is
    given. `data` are the texts in which uses are counted, `keep_data` those that must keep their tokens.

    The metrics hold the figures of both. Raises `UserError` where fewer tokens can leave than are wanted, and where the
    tokens of a document change that has none of those that leave.
    """
    before = load(options.directory, options.tokenizer_scheme)
    inputs = [options.model] if options.model else tokenizer_files(options.directory)
    step = Step(STEP, options.output, options.arguments(), [*inputs, *data, *keep_data], options.overwrite)
    return run_step(step, lambda partial: _build(partial, before, options, data, keep_data))


def _build(
    partial: Path, before: Tokenizer, options: PruneOptions, data: Sequence[Path], keep_data: Sequence[Path]
) -> Outcome:
    model, kept = options.model, protected(before)
    if model:
        if options.verify and not options.trust_remote_code:
            refuse_own_code(model)
        config = read_config(model)
        check_supported(config, model)
        check_one_table(config, model)
        vocabulary(model)  # refused here if it has fewer rows than ids, and not after all texts were read
        kept |= {i for i in _named_ids(model) if i < before.size}
    if keep_data:
        kept |= set(np.flatnonzero(_uses(before, keep_data, options.reading)).tolist())
    counts = _uses(before, data, options.reading)
    chosen = _choose(before, counts, kept, options)
    ids = Renumbering.without([number for number, _ in chosen], before.size)
    definition = pruned_definition(before.definition, before.pieces(), ids)
    write_tokenizer(definition, partial)
    with (partial / LIST).open("w", encoding="utf-8") as file:
        for number, uses in chosen:
            line = {"piece": before.pieces()[number], "id": number, "uses": uses}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    after = load(partial)
    assert after.fingerprint == from_definition(definition).fingerprint, (
        "what was written reads as another tokenizer"
    )
    _check_alone(before, after, ids)
    figures: dict[str, Any] = {"data": _compare(before, after, ids, data, options.reading, "--data")}
    if keep_data:
        figures["keep_data"] = _compare(before, after, ids, keep_data, options.reading, "--keep-data")
        assert not figures["keep_data"]["changed"], "a token of --keep-data left"
    outputs = {
        "source_size": before.size,
        "size": after.size,
        "source_tokenizer": before.fingerprint,
        "tokenizer": after.fingerprint,
        "family": after.family,
    }
    if model:
        rows = _prune_model(partial, options.output, model, ids, options.trust_remote_code)
        outputs["vocabulary"] = rows.to_json()
        if options.verify:
            stay = np.flatnonzero(ids.new_ids >= 0)
            figures["verified"] = verify_pruned(model, partial, stay, options.trust_remote_code)
    removed_uses = int(counts[ids.new_ids < 0].sum())
    return Outcome(outputs, {"removed": len(chosen), "removed_uses": removed_uses, **figures})


def _uses(tokenizer: Tokenizer, paths: Sequence[Path], reading: ReadOptions) -> Int64:
    """int64 [size]: how often each token is in the texts of `paths`."""
    counts = np.zeros(tokenizer.size, np.int64)
    for texts in _texts(paths, reading, "counting"):
        counts += np.bincount(tokenizer.encode(texts)[0], minlength=tokenizer.size)
    return counts


def _texts(paths: Sequence[Path], reading: ReadOptions, label: str) -> Any:
    reader = Reader(paths, reading)
    with progress(f"{STEP}: {label}", reader.size / 1e6, "MB") as advance:
        yield from reader.texts(lambda size: advance(size / 1e6))


def _choose(before: Tokenizer, counts: Int64, kept: set[int], options: PruneOptions) -> list[tuple[int, int]]:
    """The ids that leave, in that order, with the uses that each had then."""
    chosen: list[tuple[int, int]] = []
    for number, uses in removal_order(before, counts, kept):
        if len(chosen) == options.num_tokens or (options.min_count is not None and uses >= options.min_count):
            break
        chosen.append((number, uses))
    if options.num_tokens is not None and len(chosen) < options.num_tokens:
        raise UserError(
            f"--num-tokens {options.num_tokens:,}: only {len(chosen):,} tokens of {before.directory} can be removed without "
            "a special token, a byte, or a token of --keep-data; give a smaller number."
        )
    if not chosen:
        raise UserError(
            f"--min-count {options.min_count:,}: every token of {before.directory} that can be removed is used as often "
            "as that in --data; give a larger number."
        )
    return chosen


def _check_alone(before: Tokenizer, after: Tokenizer, ids: Renumbering) -> None:
    """Refuses a kept token that was made of its own spelling and is not any more."""
    pieces = before.pieces()
    stay = [i for i in np.flatnonzero(ids.new_ids >= 0).tolist() if pieces[i]]
    names = [pieces[i] for i in stay]
    was, now = Inside(before).encode(names), Inside(after).encode(names)
    for i, old, new in zip(stay, was, now, strict=True):
        if old == [i] and new != [ids(i)]:
            raise UserError(
                f"{before.directory}: the token {pieces[i]!r} could not be reached any more; nothing was written. Please report "
                "it with the tokenizer."
            )


def _compare(
    before: Tokenizer,
    after: Tokenizer,
    ids: Renumbering,
    paths: Sequence[Path],
    reading: ReadOptions,
    flag: str,
) -> dict[str, int]:
    """What became of the documents of `paths`; a `UserError` where one without a removed token has others now."""
    figures = dict.fromkeys(("documents", "changed", "tokens_before", "tokens_after"), 0)
    for texts in _texts(paths, reading, f"checking {flag}"):
        ways = [(before.encode(texts), after.encode(texts))]
        figures["tokens_before"] += len(ways[0][0][0])
        figures["tokens_after"] += len(ways[0][1][0])
        figures["documents"] += len(texts)
        if after.definition.model is not None:
            ways.append((_flat(sentencepiece_ids(before, texts)), _flat(sentencepiece_ids(after, texts))))
        for way, ((old, old_offsets), (new, new_offsets)) in enumerate(ways):
            expected = ids.new_ids[old]
            for text, (a, b), (c, d) in zip(
                texts, pairwise(old_offsets.tolist()), pairwise(new_offsets.tolist()), strict=True
            ):
                if (expected[a:b] < 0).any():
                    figures["changed"] += not way
                elif not np.array_equal(expected[a:b], new[c:d]):
                    raise UserError(
                        f"{flag}: the tokens of a document changed although none of them was removed, {text[:200]!r}; nothing was "
                        "written. Please report it with the tokenizer."
                    )
    return figures


def _flat(rows: Sequence[Sequence[int]]) -> tuple[Int64, Int64]:
    offsets = np.cumsum([0, *map(len, rows)])
    return np.array([i for row in rows for i in row], np.int64), offsets


def _prune_model(
    partial: Path, output: Path, source: Path, ids: Renumbering, trust_remote_code: bool
) -> Vocabulary:
    """Writes the model of `source` without the rows of tokens that left; all others keep their bytes and their order."""
    config = read_config(source)
    weights = check_complete(source, trust_remote_code)
    tensors = find_vocabulary_tensors(weights, config, trust_remote_code)
    old = vocabulary(source)
    stays = np.append(ids.new_ids >= 0, np.ones(tensors.rows - len(ids.new_ids), np.bool_))
    pruned = {name: _pruned(tensor, stays) for tensor in tensors.by_role().values() for name in [tensor.name]}
    shards = [
        [
            pruned.get(name) or NewTensor.copy(weights.tensors[name])
            for name in shard
            if name not in tensors.aliases
        ]
        for shard in weights.shards
    ]
    rows = Vocabulary(int(stays[: old.source].sum()), int(stays[: old.size].sum()), int(stays.sum()))
    made = with_vocabulary_size(stating_tied(_renumbered(config, ids), tensors.tied), rows.padded)
    with enough_disk_space(output, sum(tensor.size for shard in shards for tensor in shard)):
        write_weights(partial, shards, STEP)
        write_configs(partial, made, source)
        generation = partial / GENERATION_CONFIG
        if (source / GENERATION_CONFIG).is_file():
            write_json(generation, _renumbered(json.loads(generation.read_text("utf-8")), ids))
        copy_code(source, partial)
        copy_legal_files(source, partial)
    written = open_weights(partial).tensors
    for tensor in tensors.by_role().values():
        _check_rows(tensor, written[tensor.name], stays)
    return rows


def _pruned(tensor: Tensor, stays: Bool) -> NewTensor:
    def write(file: BinaryIO) -> None:
        for first, block in _rows(tensor):
            write_all(file, block[stays[first : first + len(block)]])

    return NewTensor.made(tensor.name, tensor.dtype, (int(stays.sum()), *tensor.shape[1:]), write)


def _rows(tensor: Tensor) -> Any:
    """(first row, bytes [at most 16 MB, bytes of a row]) of all rows."""
    step = max(1, BLOCK_BYTES // tensor.row_bytes)
    for first in range(0, tensor.rows, step):
        last = min(first + step, tensor.rows)
        yield (
            first,
            tensor.read(first * tensor.row_bytes, last * tensor.row_bytes).reshape(last - first, -1),
        )


def _check_rows(source: Tensor, written: Tensor, stays: Bool) -> None:
    """Compares what was written with the rows of `source` that stay: with these the logits are the same."""
    before = 0
    for first, block in _rows(source):
        kept = block[stays[first : first + len(block)]]
        there = written.read(before * source.row_bytes, (before + len(kept)) * source.row_bytes)
        if not np.array_equal(there, kept.reshape(-1)):
            raise UserError(
                f"{source.path}: {source.name} was changed while it was read, or could not be written; run the command again."
            )
        before += len(kept)


def _named_ids(model: Path) -> set[int]:
    """Every id that the model's configurations name."""
    found: set[int] = set()

    def take(number: int) -> int:
        found.add(number)
        return number

    _mapped(read_config(model), take)
    if (model / GENERATION_CONFIG).is_file():
        try:
            _mapped(json.loads((model / GENERATION_CONFIG).read_text("utf-8")), take)
        except ValueError as error:
            raise UserError(
                f"{model / GENERATION_CONFIG} is not JSON ({error}); download it again."
            ) from None
    return {number for number in found if number >= 0}


def _renumbered(config: dict[str, Any], ids: Renumbering) -> dict[str, Any]:
    return _mapped(config, ids)


def _mapped(config: dict[str, Any], new_id: Callable[[int], int]) -> dict[str, Any]:
    """`config` with `new_id` of every id that it names, in its parts as well."""

    def value(name: str, given: Any) -> Any:
        if isinstance(given, Mapping):
            return {key: value(key, one) for key, one in given.items()}
        if name.endswith(NAMES_IDS) or name in LISTS_IDS:
            if isinstance(given, list):
                return [value(name, one) for one in given]
            if isinstance(given, int) and not isinstance(given, bool):
                return new_id(given)
        return given

    return {key: value(key, one) for key, one in config.items()}
