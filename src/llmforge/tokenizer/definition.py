"""Reading a tokenizer directory, whatever its format, as the one thing that all others can be written as."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmforge import console
from llmforge.errors import UserError, missing
from llmforge.tokenizer.formats import framing, sentencepiece_model, tiktoken_ranks, vocabulary_files
from llmforge.tokenizer.formats.added import place_added_tokens
from llmforge.tokenizer.formats.agreement import check_ranks, check_sentencepiece, rename_pieces
from llmforge.tokenizer.formats.config import CONFIG, read_config, read_json
from llmforge.tokenizer.formats.rebuilt import warn_of_other_words
from llmforge.tokenizer.formats.schemes import SCHEMES
from llmforge.tokenizer.formats.shapes import checked

Family = Literal["sentencepiece-bpe", "sentencepiece-unigram", "byte-level-bpe"]


@dataclass(frozen=True)
class Definition:
    """A tokenizer as its files say: `json` is its `tokenizer.json`, read or converted, whole and with merges as pairs.

    Every added token stands in its vocabulary as well, its post-processor is what transformers puts around a text, and
    nothing in it is random. `model` is the sentencepiece protobuf where there is one; `config` is the checked
    `tokenizer_config.json` with `special_tokens_map.json`.
    """

    directory: Path
    family: Family
    json: dict[str, Any]
    config: dict[str, Any]
    model: Any = None


def read_definition(directory: Path, scheme: str | None = None) -> Definition:
    """The tokenizer in `directory`; a `UserError` where there is none of a kind that llmforge can extend.

    `scheme` says what a rank file is where it cannot be told (formats/schemes.py).
    """
    if not directory.exists():
        raise missing(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is a file; give the tokenizer's directory.")
    if scheme is not None and scheme not in SCHEMES:
        raise UserError(f"--tokenizer-scheme {scheme} must be one of {', '.join(SCHEMES)}.")
    config = read_config(directory)
    kind = framing.tokenizer_class(config, directory)
    model_file, json_file = directory / "tokenizer.model", directory / "tokenizer.json"
    texts = [directory / name for name in ("vocab.json", "merges.txt")]
    ranks = tiktoken_ranks.find_ranks(directory)
    proto = model_file.is_file() and model_file != ranks
    model = sentencepiece_model.read_model(model_file) if proto else None
    if json_file.is_file():
        definition, file = checked(read_json(json_file), json_file), json_file
        framing.add_default_names(config, kind, definition["model"]["vocab"])
    elif model is not None:
        definition, file = _from_sentencepiece(model, config, kind, directory), model_file
    elif all(path.is_file() for path in texts):
        definition, file = vocabulary_files.read(directory, config, kind), texts[0]
    elif ranks is not None:
        definition, special = tiktoken_ranks.read_ranks(ranks, config, scheme)
        config, file = {**special, **config}, ranks
    else:
        raise UserError(
            f"{directory} has no tokenizer.json, tokenizer.model, vocab.json with merges.txt, or tiktoken ranks; give the "
            "directory of a BPE or unigram tokenizer."
        )
    place_added_tokens(definition, config, directory, file)
    if file in (model_file, texts[0]) and file != ranks:
        framing.frame_by_flags(definition, config, kind, default=file == model_file)
    if file == json_file:
        framing.decide_frame(definition, config, directory)
        warn_of_other_words(definition, config, directory)
        if model is not None:
            rename_pieces(model, definition["added_tokens"], directory)
            check_sentencepiece(definition, model, directory)
        elif model_file == ranks:
            check_ranks(definition, ranks)
    if "auto_map" in config:
        console.warn(f"{directory}: {CONFIG} names custom code (auto_map), which llmforge does not run.")
    if definition["model"]["type"] == "Unigram":
        _shield_control_pieces(definition)
    return Definition(directory, family_of(definition, directory), definition, config, model)


def _from_sentencepiece(model: Any, config: dict[str, Any], kind: str, directory: Path) -> dict[str, Any]:
    """The `tokenizer.json` of a protobuf, with what the configuration of its class changes."""
    rename_pieces(model, config["added_tokens_decoder"].values(), directory)
    if config.get("add_prefix_space") is False:
        model.normalizer_spec.add_dummy_prefix = False
    for key, token in sentencepiece_model.named_tokens(model).items():
        config.setdefault(key, token)
    return sentencepiece_model.to_tokenizer_json(model)


def family_of(definition: dict[str, Any], directory: Path) -> Family:
    """Which kind of tokenizer a `tokenizer.json` describes."""
    kind = definition["model"]["type"]
    byte_level = "ByteLevel" in _types(definition.get("pre_tokenizer")) | _types(definition.get("normalizer"))
    spaced = sentencepiece_model.SPACE in json.dumps(
        [definition.get(k) for k in ("pre_tokenizer", "normalizer")], ensure_ascii=False
    )
    if kind == "Unigram":
        return "sentencepiece-unigram"
    if kind == "BPE" and byte_level:
        return "byte-level-bpe"
    if kind == "BPE" and spaced:
        return "sentencepiece-bpe"
    raise UserError(
        f"{directory} has a {kind} tokenizer that is neither byte-level nor sentencepiece, which llmforge "
        "does not support; use a BPE or unigram tokenizer."
    )


def _types(component: Any) -> set[str]:
    """The types of a normalizer or pre-tokenizer and of everything inside it."""
    if not component:
        return set()
    inner = component.get("pretokenizers") or component.get("normalizers") or []
    return {component["type"]}.union(*(_types(part) for part in inner))


def _shield_control_pieces(definition: dict[str, Any]) -> None:
    """Cuts text that spells a special token or a byte piece behind its first character.

    A unigram model of `tokenizers` takes every entry of its vocabulary for text, control tokens too; sentencepiece
    does not.
    """
    special = [token["content"] for token in definition["added_tokens"] if token["special"]]
    spelled = {
        re.escape(content[0]) + f"(?={re.escape(content[1:])})" for content in special if len(content) > 1
    }
    if definition["model"].get("byte_fallback"):
        spelled.add("<(?=0x[0-9A-F]{2}>)")
    pattern = {"Regex": "|".join(sorted(spelled))}
    shield = {"type": "Split", "pattern": pattern, "behavior": "MergedWithPrevious", "invert": False}
    others = definition.get("pre_tokenizer")
    known = [others, *(others or {}).get("pretokenizers", [])]
    if spelled and shield not in known:
        parts = [shield] if others is None else [others, shield]
        definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
