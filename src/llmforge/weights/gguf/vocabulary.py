"""A tokenizer as the fields of a GGUF file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer
from llmforge.tokenizer.formats.sentencepiece_model import SPACE
from llmforge.tokenizer.loading import BYTE_PIECE
from llmforge.weights.gguf.pre_tokenizers import pre_tokenizer_name

# Kinds of tokens (gguf.TokenType): llama.cpp matches user-defined ones in every text, control ones where it is asked to.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Tokens that llama.cpp knows by their text alone (llama-vocab.cpp).
CONTROL_BY_NAME = frozenset(
    [
        "</s>",
        "<eos>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<PRE>",
        "<SUF>",
        "<MID>",
        "<PAD>",
        "[PAD]",
        "<REPO>",
        "<reponame>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<fim-prefix>",
        "<fim-suffix>",
        "<fim-middle>",
        "<fim-pad>",
        "<fim-repo>",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        "<fim_pad>",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        "<|fim_pad|>",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<|file_sep|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|return|>",
        "<|call|>",
        "<|code_prefix|>",
        "<|code_suffix|>",
        "<|code_middle|>",
        "<｜fim▁begin｜>",
        "<｜fim▁hole｜>",
        "<｜fim▁end｜>",
        "<｜end▁of▁sentence｜>",
    ]
)
GENERATION_CONFIG = "generation_config.json"
TEMPLATE = "chat_template.jinja"


def tokenizer_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """The values of `tokenizer.ggml...` and `tokenizer.chat_template` by their names in GGUF.

    Raises `UserError` where llama.cpp would give other ids than `tokenizer`.
    """
    place, definition = tokenizer.directory, tokenizer.definition.json
    tokens, kinds = _tokens(tokenizer)
    if tokenizer.family == "byte-level-bpe":
        fields: dict[str, Any] = {
            "ggml.model": "gpt2",
            "ggml.pre": pre_tokenizer_name(definition, place),
            "ggml.tokens": tokens,
            "ggml.token_type": kinds,
            "ggml.merges": [f"{left} {right}" for left, right in definition["model"]["merges"]],
        }
    elif tokenizer.family == "sentencepiece-bpe":
        fields = {
            "ggml.model": "llama",
            "ggml.pre": "default",
            "ggml.tokens": tokens,
            "ggml.scores": _scores(definition, tokens, kinds, place),
            "ggml.token_type": kinds,
            "ggml.add_space_prefix": _adds_space(definition, place),
        }
    else:
        raise UserError(
            f"{place}: llama.cpp merges pieces by their scores, which is no unigram model; the tokenizer cannot be exported to GGUF."
        )
    _warn_of_flags(definition, place)
    return {**fields, **_special(tokenizer), **_template(tokenizer)}


def _tokens(tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """Tokens by id, each different, and their kinds."""
    definition = tokenizer.definition.json
    byte_fallback = bool(definition["model"].get("byte_fallback"))
    tokens = list(tokenizer.pieces())
    kinds = [BYTE if byte_fallback and BYTE_PIECE.fullmatch(piece) else NORMAL for piece in tokens]
    known = set(tokens)
    for number, piece in enumerate(tokens):
        if not piece:
            name = f"[PAD{number}]"
            tokens[number], kinds[number] = f"[UNUSED{number}]" if name in known else name, UNUSED
    for token in definition["added_tokens"]:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unknown = definition["model"].get("unk_token")
    if unknown is not None and unknown in definition["model"]["vocab"]:
        kinds[definition["model"]["vocab"][unknown]] = UNKNOWN
    return tokens, kinds


def _scores(definition: Mapping[str, Any], tokens: list[str], kinds: list[int], place: Path) -> list[float]:
    """A score for each token: llama.cpp joins the neighbors that make the token of the highest score, and `tokenizers` those
    of the first merge. So the score is the rank of the first merge that makes the token, negated.
    """
    model = definition["model"]
    if not model.get("byte_fallback"):
        raise UserError(
            f"{place}: its tokenizer has no byte fallback, without which llama.cpp cannot encode characters that are no pieces; "
            "the model cannot be exported to GGUF."
        )
    ranks: dict[str, list[int]] = {}
    merges = {tuple(pair) for pair in model["merges"]}
    for rank, (left, right) in enumerate(model["merges"]):
        ranks.setdefault(left + right, []).append(rank)
    vocabulary = model["vocab"]
    unmerged = [
        piece
        for piece, kind in zip(tokens, kinds, strict=True)
        if kind == NORMAL
        and any(
            piece[:i] in vocabulary and piece[i:] in vocabulary and (piece[:i], piece[i:]) not in merges
            for i in range(1, len(piece))
        )
    ]
    if unmerged:
        raise UserError(
            f"{place}: llama.cpp would join pieces to {len(unmerged):,} tokens (the first is {unmerged[0]!r}) that no merge of "
            "this tokenizer makes; the model cannot be exported to GGUF."
        )
    scattered = sum(found[-1] - found[0] != len(found) - 1 for found in ranks.values())
    if scattered:
        warn(
            f"{place}: {scattered:,} tokens are made by merges of different ranks, and llama.cpp has one score for each; rare texts "
            "may get other ids there."
        )
    return [-float(ranks[piece][0]) if piece in ranks else 0.0 for piece in tokens]


def _adds_space(definition: Mapping[str, Any], place: Path) -> bool:
    """Whether a text is given a space in front; `UserError` where llama.cpp would treat spaces otherwise."""
    steps = _flat(definition["normalizer"], "normalizers")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    cuts = _flat(definition["pre_tokenizer"], "pretokenizers")
    if steps in ([replace], [prepend, replace]):
        # Cutting at spaces does nothing once they are replaced.
        cuts = [one for one in cuts if one["type"] != "Split" or one["pattern"] != {"String": " "}]
        spaced = len(steps) == 2
        if not cuts:
            return spaced
    if steps in ([], [replace]) and len(cuts) == 1 and cuts[0]["type"] == "Metaspace":
        cut = cuts[0]
        if cut.get("replacement") == SPACE and cut.get("split") is False:
            if cut.get("prepend_scheme") == "never":
                return False
            warn(
                f"{place}: llama.cpp puts a space before every text, as sentencepiece does; tokenizer.json leaves it out where "
                "a text begins with a space, so such texts get one token more there."
            )
            return True
    raise UserError(
        f"{place}: llama.cpp has no equal of what this tokenizer does with characters and spaces before it merges; the model "
        "cannot be exported to GGUF."
    )


def _flat(step: Mapping[str, Any] | None, key: str) -> list[Any]:
    if step is None:
        return []
    return [one for part in step[key] for one in _flat(part, key)] if step["type"] == "Sequence" else [step]


def _warn_of_flags(definition: Mapping[str, Any], place: Path) -> None:
    """Tokens that are matched in every text, but not as they stand."""
    odd = [
        token["content"]
        for token in definition["added_tokens"]
        if not token["special"] and (token.get("lstrip") or token.get("rstrip") or token.get("single_word"))
    ]
    if odd:
        warn(
            f"{place}: {len(odd)} added tokens (the first is {odd[0]!r}) take the spaces beside them, or whole words only; llama.cpp "
            "does not."
        )
    taken = [token["content"] for token in definition["added_tokens"] if not token["special"]]
    if taken := [one for one in taken if one in CONTROL_BY_NAME]:
        warn(
            f"{place}: llama.cpp takes {', '.join(taken[:3])}{' ...' if taken[3:] else ''} for control tokens, whatever the tokenizer "
            "says: texts that spell them get other ids there."
        )


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids of special tokens, and what is put before a text."""
    place, prefix = tokenizer.directory, tokenizer.prefix_ids
    if len(prefix) > 1:
        raise UserError(
            f"{place}: its tokenizer puts {len(prefix)} tokens before a text; llama.cpp puts one. The model cannot be exported to GGUF."
        )
    if tokenizer.eos_id is None:
        raise UserError(
            f"{place}: its tokenizer names no eos token, and llama.cpp would take another token for one; set eos_token in "
            "tokenizer_config.json."
        )
    ids = {token["content"]: token["id"] for token in tokenizer.definition.json["added_tokens"]}
    config = tokenizer.definition.config
    bos = prefix[0] if prefix else ids.get(config.get("bos_token"))
    unknown = tokenizer.definition.json["model"].get("unk_token") or config.get("unk_token")
    others = [one for one in _ends(place) if one != tokenizer.eos_id and 0 <= one < tokenizer.size]
    found = {
        "bos": bos,
        "eos": tokenizer.eos_id,
        "unknown": ids.get(unknown),
        "padding": tokenizer.pad_id,
        "eot": others[0] if others else None,
    }
    named = {f"ggml.{name}_token_id": one for name, one in found.items() if one is not None}
    return {**named, "ggml.add_bos_token": bool(prefix), "ggml.add_eos_token": False}


def _ends(directory: Path) -> list[int]:
    """The ids that end a text by the generation configuration."""
    path = directory / GENERATION_CONFIG
    if not path.is_file():
        return []
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError):
        raise UserError(f"{path} is not a JSON object; copy the model again.") from None
    return [one for one in (named if isinstance(named, list) else [named]) if isinstance(one, int)]


def _template(tokenizer: Tokenizer) -> dict[str, Any]:
    """The chat template; of several, the one named `default`."""
    file = tokenizer.directory / TEMPLATE
    found = tokenizer.definition.config.get("chat_template")
    if file.is_file():
        found = file.read_text(encoding="utf-8")
    elif isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return {"chat_template": found} if isinstance(found, str) and found else {}
