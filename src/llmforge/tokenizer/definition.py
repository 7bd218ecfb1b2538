"""Reading a tokenizer directory, whatever its format, as the one thing that all others can be written as."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmforge.errors import UserError
from llmforge.tokenizer import sentencepiece_model, tiktoken_ranks

Family = Literal["sentencepiece-bpe", "sentencepiece-unigram", "byte-level-bpe"]
# How Qwen2's class for `vocab.json` and `merges.txt` cuts a text before the merges; GPT-2's way is built in.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Definition:
    """A tokenizer as its files say: `json` is its `tokenizer.json` (merges as pairs), read or converted.

    `model` is the sentencepiece protobuf where there is one; `config` is `tokenizer_config.json` over
    `special_tokens_map.json`, empty where neither is there.
    """

    directory: Path
    family: Family
    json: dict[str, Any]
    config: dict[str, Any]
    model: Any = None


def read_definition(directory: Path) -> Definition:
    """The tokenizer in `directory`; a `UserError` where there is none of a kind that llmforge can extend."""
    if not directory.exists():
        raise UserError(f"{directory} does not exist; check the path.")
    if not directory.is_dir():
        raise UserError(f"{directory} is a file; give the tokenizer's directory.")
    config = {
        **read_json(directory / "special_tokens_map.json"),
        **read_json(directory / "tokenizer_config.json"),
    }
    model_file, json_file = directory / "tokenizer.model", directory / "tokenizer.json"
    ranks = tiktoken_ranks.find_ranks(directory)
    proto = model_file.is_file() and model_file != ranks
    model = sentencepiece_model.read_model(model_file) if proto else None
    if json_file.is_file():
        definition = _checked(read_json(json_file), json_file)
    elif model is not None:
        add_bos, add_eos = bool(config.get("add_bos_token", True)), bool(config.get("add_eos_token", False))
        definition = sentencepiece_model.to_tokenizer_json(model, add_bos, add_eos)
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        definition = _from_vocabulary_and_merges(directory, config)
    elif ranks is not None:
        definition, special = tiktoken_ranks.read_ranks(ranks)
        config = {**special, **config}
    else:
        raise UserError(
            f"{directory} has no tokenizer.json, tokenizer.model, vocab.json with merges.txt, or tiktoken "
            f"ranks; "
            "give the directory of a BPE or unigram tokenizer."
        )
    _add_configured_tokens(definition, directory, config)
    if definition["model"]["type"] == "Unigram":
        _shield_control_pieces(definition)
    return Definition(directory, family_of(definition, directory), definition, config, model)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file `path`, or {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fetch the file again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; fetch the file again.")
    return value


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
        f"{directory} has a {kind} tokenizer that is neither byte-level nor sentencepiece; llmforge "
        f"cannot use it."
    )


def token_content(value: Any) -> str | None:
    """The text of a special token, which configurations write as a string or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _types(component: Any) -> set[str]:
    """The types of a normalizer or pre-tokenizer and of everything inside it."""
    if not component:
        return set()
    inner = component.get("pretokenizers") or component.get("normalizers") or []
    return {component["type"]}.union(*(_types(part) for part in inner))


def _checked(definition: dict[str, Any], path: Path) -> dict[str, Any]:
    model = definition.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise UserError(
            f"{path} has no model with a vocabulary, so it is no tokenizer.json; fetch the file again."
        )
    if "type" not in model:  # files of 2020 left it out
        model["type"] = "BPE" if "merges" in model else "Unigram" if "unk_id" in model else "WordPiece"
    if model["type"] not in ("BPE", "Unigram"):
        raise UserError(
            f"{path} is a {model['type']} tokenizer; llmforge can extend BPE and unigram tokenizers only."
        )
    if model["type"] == "BPE":
        model["merges"] = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    definition.setdefault("added_tokens", [])
    return definition


def _from_vocabulary_and_merges(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    merges_file = directory / "merges.txt"
    vocabulary = read_json(directory / "vocab.json")
    lines = merges_file.read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    for number, merge in enumerate(merges, 1):
        if len(merge) != 2 or merge[0] + merge[1] not in vocabulary:
            raise UserError(
                f"{merges_file}, merge {number}: not two pieces that make one of vocab.json; fetch the "
                f"files again."
            )
    byte_level: dict[str, Any] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    pre_tokenizer, normalizer = byte_level, None
    if str(config.get("tokenizer_class", "")).startswith("Qwen2"):
        split = {
            "type": "Split",
            "pattern": {"Regex": QWEN2_PATTERN},
            "behavior": "Isolated",
            "invert": False,
        }
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
        normalizer = {"type": "NFC"}
    if "<|endoftext|>" in vocabulary and not config:
        config.update(dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _add_configured_tokens(definition: dict[str, Any], directory: Path, config: dict[str, Any]) -> None:
    """Adds the added tokens that stand in the configuration alone, each at its own id."""
    model = definition["model"]
    pieces = [piece for piece, _ in model["vocab"]] if model["type"] == "Unigram" else None
    ids: dict[str, int] = (
        {piece: i for i, piece in enumerate(pieces)} if pieces is not None else model["vocab"]
    )
    known = {token["id"] for token in definition["added_tokens"]}
    configured = {int(i): dict(token) for i, token in config.get("added_tokens_decoder", {}).items()}
    for content, i in read_json(directory / "added_tokens.json").items():
        configured.setdefault(i, {"content": content, "special": False})
    named = {
        config[name] if isinstance(config[name], str) else token_content(config[name])
        for name in _NAMED
        if config.get(name)
    }
    for content in sorted(content for content in named if content in ids):
        configured.setdefault(ids[content], {"content": content, "special": True})
    for i, token in sorted(configured.items()):
        if i not in known:
            entry = sentencepiece_model.added_token(i, token["content"], bool(token.get("special", False)))
            flags = {
                key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in token
            }
            definition["added_tokens"].append({**entry, **flags})
    definition["added_tokens"].sort(key=lambda token: token["id"])


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


_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
