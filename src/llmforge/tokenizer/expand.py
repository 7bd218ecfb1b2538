"""`init-tokenizer`: the source with new pieces behind its ids, as files that load alike everywhere."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmforge.errors import UserError
from llmforge.steps import Finished, Outcome, Step, run_step
from llmforge.tokenizer.chat_template import ChatTemplate
from llmforge.tokenizer.closure import Additions, ByList, ByScore, close
from llmforge.tokenizer.definition import Definition
from llmforge.tokenizer.files import tokenizer_files
from llmforge.tokenizer.formats import sentencepiece_model as spm
from llmforge.tokenizer.formats.added import fill_unused
from llmforge.tokenizer.formats.config import TEMPLATE, write_config
from llmforge.tokenizer.formats.framing import frame_flags
from llmforge.tokenizer.inside import Inside
from llmforge.tokenizer.loading import Tokenizer, from_definition, load
from llmforge.tokenizer.options import InitTokenizerOptions
from llmforge.tokenizer.pieces import Cleaned, read_pieces
from llmforge.tokenizer.special import with_special_tokens
from llmforge.tokenizer.verify import verify

BPE_STEP = np.float32(1)
UNIGRAM_STEP = 1e-4  # scores are logarithms here: 20,000 pieces stay within 2 of the source's last
UNIGRAM_MARGIN = 1e-2  # more than the float32 sums of sentencepiece lose in a text of some thousand tokens


@dataclass(frozen=True)
class Expanded:
    """The extended tokenizer, what was cleaned from the pieces and what was added."""

    tokenizer: Tokenizer
    cleaned: Cleaned
    additions: Additions


def init_tokenizer(options: InitTokenizerOptions) -> Finished:
    """Writes the tokenizer directory `options.output`: the tokenizer and the pieces, verified on `verify_data`, which are
    files and directories.

    The manifest has `outputs.source_size` and `outputs.size` (highest id + 1 before and after) and the checks'
    figures in `metrics`. Raises `UserError` for a damaged input, and where a check that must hold fails.
    """
    before = load(options.tokenizer, options.tokenizer_scheme)
    if options.chat_template:
        before = _with_template(before, options.chat_template)
    texts = [Path(text) for text in options.verify_data]
    inputs = [*tokenizer_files(options.tokenizer), *([options.pieces] if options.pieces else []), *texts]
    step = Step("init-tokenizer", options.output, options.arguments(), inputs, options.overwrite)
    return run_step(step, lambda path: _build(path, before, options, texts))


def _build(path: Path, before: Tokenizer, options: InitTokenizerOptions, texts: Sequence[Path]) -> Outcome:
    base = with_special_tokens(before, options.special_tokens)
    if options.chat_template:
        ChatTemplate(base, options.chat_template).require_tokens()
    expanded = (
        expand(base, options.pieces, options.closure)
        if options.pieces
        else Expanded(base, Cleaned([], {}), Additions())
    )
    write_tokenizer(expanded.tokenizer.definition, path)
    if options.chat_template:  # the source's own file would count before the one in the configuration
        (path / TEMPLATE).unlink(missing_ok=True)
    after = load(path)
    assert after.fingerprint == expanded.tokenizer.fingerprint, "what was written reads as another tokenizer"
    wanted = [*expanded.cleaned.pieces]
    checks = verify(base, after, wanted, expanded.additions.unreachable, texts, options.reading)
    added = after.size - before.size
    metrics = {
        "pieces": {
            **expanded.cleaned.counts,
            "added": added,
            "special": base.size - before.size,
            "closure": len(expanded.additions.closure),
        },
        "closure_examples": expanded.additions.closure[:20],
        "gates": checks,
    }
    outputs = {"source_size": before.size, "size": after.size, "tokenizer": after.fingerprint}
    return Outcome(
        outputs={**outputs, "source_tokenizer": before.fingerprint, "family": after.family}, metrics=metrics
    )


def _with_template(before: Tokenizer, source: Path) -> Tokenizer:
    """`before` with a chat template, which stands in the configuration, where all versions of transformers find it."""
    text = ChatTemplate(before, source).text
    config = {**before.definition.config, "chat_template": text}
    return replace(before, definition=replace(before.definition, config=config))


def expand(before: Tokenizer, pieces_file: Path, closure: bool = True) -> Expanded:
    """`before` with the pieces of `pieces_file`, in memory."""
    cleaned = read_pieces(pieces_file, Inside(before))
    definition = before.definition
    if definition.model is not None:
        extended, additions = _extend_model(before, cleaned.pieces, closure)
    else:
        extended, additions = _extend_json(before, cleaned.pieces, closure)
    if not additions.made:
        piece, reason = next(iter(additions.unreachable.items()))
        raise UserError(f"{pieces_file}: none of its pieces can be used ({piece}: {reason}); correct them.")
    return Expanded(from_definition(extended), cleaned, additions)


def _extend_json(before: Tokenizer, wanted: Sequence[str], closure: bool) -> tuple[Definition, Additions]:
    definition = before.definition
    if before.family == "sentencepiece-unigram":
        return _grow_unigram_json(before, wanted)
    model = fill_unused(definition.json)
    known = ByList(model["vocab"], model["merges"], before.family == "byte-level-bpe")
    listed = len(known.ranks)
    additions = close(wanted, known, closure)
    new = {piece: before.size + i for i, (piece, _) in enumerate(additions.made)}
    model["vocab"] = {**model["vocab"], **new}
    model["merges"] = [*model["merges"], *list(known.ranks)[listed:]]
    return replace(definition, json={**definition.json, "model": model}), additions


def _grow_unigram_json(before: Tokenizer, wanted: Sequence[str]) -> tuple[Definition, Additions]:
    """A unigram tokenizer of which only `tokenizer.json` is left."""
    definition = before.definition
    special = {token["content"] for token in definition.json["added_tokens"]}
    model = dict(definition.json["model"])
    scores = {piece: score for piece, score in model["vocab"] if piece not in special}
    new = [[piece, score] for piece, score in zip(wanted, unigram_scores(wanted, scores), strict=True)]
    additions = Additions([(piece, None) for piece in wanted])
    model["vocab"] = [*model["vocab"], *new]
    return replace(definition, json={**definition.json, "model": model}), additions


def _extend_model(before: Tokenizer, wanted: Sequence[str], closure: bool) -> tuple[Definition, Additions]:
    definition = before.definition
    model = copy.deepcopy(definition.model)
    spm.fill(model, before.size, definition.json["added_tokens"])
    scores = {p.piece: p.score for p in model.pieces if p.type == spm.NORMAL}
    if before.family == "sentencepiece-unigram":
        additions = Additions([(piece, None) for piece in wanted])
        new = unigram_scores(wanted, scores)
    else:
        others = [p.piece for p in model.pieces if p.type != spm.NORMAL]
        additions = close(wanted, ByScore(scores, others), closure)
        new = bpe_scores(len(additions.made), min(scores.values()))
    alone = {piece for piece in [*scores, *(made for made, _ in additions.made)] if len(piece) == 1}
    for (piece, _), score in zip(additions.made, new, strict=True):
        # sentencepiece merges characters that are no pieces, which tokenizer.json cannot: then both make nothing of them.
        made = before.family == "sentencepiece-unigram" or alone.issuperset(piece)
        model.pieces.add(piece=piece, score=score, type=spm.NORMAL if made else spm.UNUSED)
    model.trainer_spec.vocab_size = len(model.pieces)
    extended = {**definition.json, "model": {**definition.json["model"], **spm.model_json(model)}}
    return replace(definition, json=extended, model=model), additions


def bpe_scores(number: int, last: float) -> list[float]:
    """`number` scores, each a step below the one before and the first below `last`.

    Or as little below as a float32 can be, where scores are as low as -1e9.
    """
    scores = [np.float32(last)]
    for _ in range(number):
        scores.append(min(scores[-1] - BPE_STEP, np.nextafter(scores[-1], np.float32(-np.inf))))
    return [float(score) for score in scores[1:]]


def unigram_scores(wanted: Sequence[str], scores: Mapping[str, float]) -> list[float]:
    """A score for each piece of `wanted`, with which it wins over any parts of it; `scores` are the source's.

    Below the source's last where that is enough, and else just above the best parts, short pieces first, so that a
    piece wins over other new ones as well. No text without a new piece changes, whatever the scores of new ones are.
    Needing no other pieces, a unigram piece needs no closure. Source: Kudo, arXiv 1804.10959.
    """
    extended = dict(scores)
    last = min(scores.values())
    for i in sorted(range(len(wanted)), key=lambda i: len(wanted[i])):
        extended[wanted[i]] = max(
            last - UNIGRAM_STEP * (i + 1), _best_parts(wanted[i], extended) + UNIGRAM_MARGIN
        )
    return [extended[piece] for piece in wanted]


def _best_parts(piece: str, scores: Mapping[str, float]) -> float:
    """The highest sum of scores of pieces that spell `piece`; minus infinity if none do."""
    best = [0.0] + [-math.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for start in range(end):
            score = scores.get(piece[start:end])
            if score is not None:
                best[end] = max(best[end], best[start] + score)
    return best[-1]


def write_tokenizer(definition: Definition, path: Path) -> None:
    """Writes `definition` as a Hugging Face tokenizer directory."""
    # In one line: indentation takes Python's own encoder, seconds for a hundred thousand pieces.
    whole = {**definition.json, "truncation": None, "padding": None}
    (path / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False) + "\n", encoding="utf-8")
    if definition.model is not None:
        (path / "tokenizer.model").write_bytes(definition.model.SerializeToString())
    pre_tokenizer = definition.json["pre_tokenizer"] or {}
    config = {"clean_up_tokenization_spaces": False, **definition.config}
    for flag in ("add_bos_token", "add_eos_token", "add_prefix_space"):
        config.pop(flag, None)
    config |= frame_flags(definition.json, config)
    if pre_tokenizer.get("type") == "ByteLevel":  # transformers 4.51 puts the configuration's flag there
        config["add_prefix_space"] = pre_tokenizer.get("add_prefix_space", True)
    write_config(path, config, definition.json, definition.directory)
