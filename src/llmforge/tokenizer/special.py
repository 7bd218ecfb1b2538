"""Special tokens of one's own, such as those of a chat template, behind the ids of a tokenizer."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from llmforge.console import say
from llmforge.errors import UserError
from llmforge.tokenizer.formats import sentencepiece_model as spm
from llmforge.tokenizer.formats.added import fill_unused
from llmforge.tokenizer.loading import Tokenizer, from_definition


def with_special_tokens(before: Tokenizer, names: Sequence[str]) -> Tokenizer:
    """`before` with `names` as special tokens, in this order; those that it has already stay where they are.

    No text has other ids, since llmforge never reads special tokens in texts. Raises `UserError` for what cannot be one.
    """
    definition = before.definition
    pieces = set(before.pieces())
    added = {token["content"]: token for token in definition.json["added_tokens"]}
    new: list[str] = []
    for name in dict.fromkeys(names):
        if not name.strip() or name != name.strip() or not name.isprintable():
            raise UserError(
                f"--special-tokens {name!r} is empty, or has white space or control characters around it."
            )
        if name in added and added[name]["special"]:
            say(f"{name} is a special token already, with the id {added[name]['id']}")
        elif name in pieces:
            raise UserError(
                f"--special-tokens {name}: {before.directory} has it as an ordinary token; choose another name."
            )
        else:
            new.append(name)
    if not new:
        return before
    tokens = [spm.added_token(before.size + i, name, True) for i, name in enumerate(new)]
    value = {**definition.json, "added_tokens": [*definition.json["added_tokens"], *tokens]}
    if isinstance(value["model"]["vocab"], list):
        scored = [*value["model"]["vocab"], *([name, 0.0] for name in new)]
        value["model"] = {**value["model"], "vocab": scored}
    else:
        filled = fill_unused(definition.json)
        vocab = {**filled["vocab"], **{token["content"]: token["id"] for token in tokens}}
        value["model"] = {**filled, "vocab": vocab}
    model = definition.model
    if model is not None:
        model = copy.deepcopy(model)
        spm.fill(model, before.size, definition.json["added_tokens"])
        for name in new:
            model.pieces.add(piece=name, score=0.0, type=spm.CONTROL)
        model.trainer_spec.vocab_size = len(model.pieces)
    return from_definition(replace(definition, json=value, model=model))
