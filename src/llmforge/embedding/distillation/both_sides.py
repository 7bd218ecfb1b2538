"""`--init distill` from beginning to end."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmforge.console import say, warn
from llmforge.embedding.distillation import inputs, outputs, snippets
from llmforge.embedding.distillation.source_model import SourceModel
from llmforge.embedding.rows import NewRows
from llmforge.errors import UsageError
from llmforge.steps import remove_tree
from llmforge.weights.floats import Float32

if TYPE_CHECKING:
    from llmforge.embedding.initializers.base import InitContext
    from llmforge.embedding.initializers.distill import DistillOptions

LENGTH, BATCH_TOKENS = 48, 1024  # of the snippets that hidden states are compared on
RUNNING_LENGTH, RUNNING_BATCH_TOKENS = 192, 1024  # of those for the head
PROBES = 4  # batches
PROBE_TOKENS = 1024  # whose time tells how many fit into --distill-minutes


def distill(context: "InitContext", roles: Sequence[str], options: "DistillOptions") -> Mapping[str, NewRows]:
    """New rows of the embedding, of the head, or of the one matrix of a tied model.

    1. Embedding: hidden states equal to those of the source (`inputs.distill_inputs`).
    2. Head: what comes next in running text is most probable, behind the states that the resized model has with the rows of
       1 (`outputs.fit`). The source's share in it is the old logits and the start.
    3. Tied: the rows of 2, held to those of 1 as far as the layers look (`outputs.Anchor`).

    Rows of tokens that the text lacks are made from their sub-tokens.
    """
    began, source = time.monotonic(), context.source
    if "head" not in context.old:
        warn(
            f"{source.directory} is tied: one matrix is embedding and head, and distilled rows have been worse for it than the "
            "means of sub-tokens (docs/model.md). --untie gives it a head of its own, which has been better than both."
        )
    model = SourceModel(source, context.trust_remote_code)
    layers = options.distill_layers or model.a_third
    if layers > len(model.layers):
        raise UsageError(
            f"--distill-layers {layers} is more than the {len(model.layers)} layers of {source.directory}; leave it out for a third."
        )
    options = replace(options, distill_layers=layers)
    if options.distill_minutes is not None:
        options = options.with_tokens(_within_minutes(context, model, roles, options, began))
    context.figures["distill_tokens"] = options.distill_tokens
    context.figures["distill_output_tokens"] = options.output_tokens
    made, known = _learned(context, model, roles, options, context.work)
    return {role: context.given(role, made[role].cpu().numpy(), known[role]) for role in roles}


def _within_minutes(
    context: "InitContext", model: SourceModel, roles: Sequence[str], options: "DistillOptions", began: float
) -> int:
    """How many of the `distill_tokens` can be learned from in `distill_minutes` after `began` (`time.monotonic`), by the time
    that the first ones take. Decided once and kept in the work directory: a killed run goes on with the same number.
    """
    file, probe = context.work / "plan.json", context.work / "probe"
    if file.exists():
        return int(json.loads(file.read_text())["tokens"])
    if probe.exists():
        remove_tree(probe)
    probe.mkdir()
    minutes, few, looked = (
        options.distill_minutes or 0.0,
        min(PROBE_TOKENS, options.distill_tokens),
        time.monotonic(),
    )
    say(f"distill: the time of {few:,} tokens tells how many fit in {minutes:g} minutes")
    _learned(context, model, roles, options.with_tokens(few), probe)
    remove_tree(probe)
    spent, for_few = time.monotonic() - began, time.monotonic() - looked
    tokens = min(options.distill_tokens, int((60 * minutes - spent) * few / for_few))
    if tokens < few:
        raise UsageError(
            f"--distill-minutes {minutes:g} is too short: loading the model and learning from {few:,} tokens takes longer; give "
            f"at least {math.ceil((spent + for_few) / 60)}, or choose another --init."
        )
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"tokens": tokens}))
    os.replace(partial, file)
    say(f"distill: {tokens:,} of --distill-tokens {options.distill_tokens:,} fit in {minutes:g} minutes")
    return tokens


def _learned(
    context: "InitContext",
    model: SourceModel,
    roles: Sequence[str],
    options: "DistillOptions",
    work: Path,
) -> tuple[dict[str, torch.Tensor], dict[str, "np.ndarray"]]:
    """The rows of each role, and which of them the text has (bool [new tokens]); goes on from what is in `work`."""
    source, target, layers = context.source, context.target, options.distill_layers
    assert layers is not None
    tied = "head" not in context.old
    wants_input = options.distill_sides != "output" and "embedding" in roles
    wants_output = options.distill_sides != "input" and ("head" in roles or tied)
    most = max(options.distill_tokens, options.output_tokens)
    texts = snippets.read_texts(source, target, context.reader(), most)
    generator = np.random.default_rng([context.options.seed, 0])
    number = target.size - source.size
    starts = {role: _by_subtokens(context, role) for role in context.old}
    rows = torch.from_numpy(starts["embedding"]).to(model.device)
    known = {role: np.zeros(number, np.bool_) for role in roles}

    even = snippets.choose_even(
        snippets.around_new_tokens(snippets.cut(texts, LENGTH), source.size),
        source.size,
        target.size,
        options.distill_tokens,
    )
    batches = snippets.in_batches(even, model.start_ids, source.size, BATCH_TOKENS, generator)
    wanted = inputs.Wanted(model, batches, layers, work)
    if wants_input:
        rate = options.distill_learning_rate * _root_mean_square(context)
        settings = inputs.InputSettings(layers, rate, options.distill_epochs, context.options.seed)
        rows, distances = inputs.distill_inputs(model, batches, wanted, rows, settings, work)
        known["embedding"] |= _seen(batches, source.size, number)
        say(
            f"distill: {len(batches):,} batches, {layers} layers; distance of the hidden states {distances[0]:.3f} in the first "
            f"epoch, {distances[-1]:.3f} in the last"
        )
    made = {role: torch.from_numpy(one) for role, one in starts.items()} | {"embedding": rows}
    if wants_output:
        role = "embedding" if tied else "head"
        logits_are = model.logits_are()
        running = snippets.choose_at_random(
            snippets.cut(texts, RUNNING_LENGTH), options.output_tokens, generator
        )
        states = outputs.collect(
            model,
            snippets.in_batches(running, model.start_ids, source.size, RUNNING_BATCH_TOKENS, generator),
            rows,
            logits_are,
            work,
        )
        anchor = None
        if tied and wants_input:
            curvature = inputs.sensitivity(
                model, batches[:PROBES], rows, wanted.scale(), layers, context.options.seed
            )
            anchor = outputs.Anchor(rows.cpu(), curvature.cpu(), options.distill_anchor)
        bias = torch.from_numpy(starts["head_bias"][:, 0]) if "head_bias" in starts else torch.zeros(number)
        if tied and wants_input:
            start = rows.cpu()
        else:
            role_rows = context.subtokens.first().filler(context.old[role])(0, number)
            start = outputs.first_guess(states, torch.from_numpy(role_rows), _first_ids(context), logits_are)
        fitted, figures = outputs.fit(states, start, bias, logits_are, context.options.seed, anchor)
        made[role] = fitted
        known[role] |= np.bincount(states.coming[states.coming >= 0].numpy(), minlength=number) > 0
        say(
            f"distill: {len(states.coming):,} places; nats a token held out {figures[0]:.3f} before, {min(figures):.3f} behind"
        )
    return made, known


def _by_subtokens(context: "InitContext", role: str) -> Float32:
    """float32 [new tokens, row length]."""
    return context.subtokens.filler(context.old[role])(0, context.target.size - context.source.size)


def _first_ids(context: "InitContext") -> torch.Tensor:
    """int64 [new tokens]: the first old token that spells each, -1 where none does."""
    spelled = context.subtokens
    first = np.full(len(spelled), -1, np.int64)
    some = np.diff(spelled.offsets) > 0
    first[some] = spelled.ids[spelled.offsets[:-1][some]]
    return torch.from_numpy(first)


def _root_mean_square(context: "InitContext") -> float:
    old = context.old["embedding"]
    return float(np.sqrt(np.square(old.norms[old.usable]).mean() / len(old.mean)))


def _seen(batches: Sequence[snippets.Batch], old_size: int, number: int) -> "np.ndarray":
    """bool [new tokens]: whether a token is in one of the batches."""
    seen = np.zeros(number, np.bool_)
    for batch in batches:
        seen[batch.new_ids[batch.new_ids >= old_size] - old_size] = True
    return seen
