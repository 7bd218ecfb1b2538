"""tiktoken's ranks as a `tokenizer.json`: `*.tiktoken`, Llama 3's `tokenizer.model`, Mistral's `tekken.json`.

tiktoken merges the adjacent pair whose joint bytes have the lowest rank, and takes a whole word that is a
token as it is (`ignore_merges`). A rank file has neither the pattern that cuts words nor the special tokens;
they follow from its name. (openai/tiktoken, src/lib.rs)
"""

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.sentencepiece_model import added_token, merges_by_score, template

LETTERS_TO_THREE_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END = "<|endoftext|>"


@dataclass(frozen=True)
class Scheme:
    """What a rank file leaves out: the pattern of words, special tokens with ids, which one begins a text."""

    pattern: str
    special: dict[str, int]
    bos: str | None = None
    eos: str | None = END


def _llama3() -> Scheme:
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>"}
    named |= {8: "<|end_of_message|>", 9: "<|eot_id|>", 10: "<|python_tag|>", 4: "<|finetune_right_pad_id|>"}
    special, reserved = {}, 0
    for i in range(256):
        special[named.get(i, f"<|reserved_special_token_{reserved}|>")] = 128_000 + i
        reserved += i not in named
    return Scheme(LETTERS_TO_THREE_DIGITS, special, "<|begin_of_text|>", "<|end_of_text|>")


SCHEMES = {
    "r50k_base": Scheme(GPT2, {END: 50_256}),
    "p50k_base": Scheme(GPT2, {END: 50_256}),
    "cl100k_base": Scheme(
        LETTERS_TO_THREE_DIGITS,
        {
            END: 100_257,
            "<|fim_prefix|>": 100_258,
            "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260,
            "<|endofprompt|>": 100_276,
        },
    ),
    "o200k_base": Scheme(O200K, {END: 199_999, "<|endofprompt|>": 200_018}),
}
TEKKEN_CONTROL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)


def find_ranks(directory: Path) -> Path | None:
    """The rank file in `directory`, if there is exactly one."""
    model = directory / "tokenizer.model"
    found = [*sorted(directory.glob("*.tiktoken")), *[p for p in [directory / "tekken.json"] if p.is_file()]]
    if model.is_file() and looks_like_ranks(model):
        found.append(model)
    return found[0] if len(found) == 1 else None


def looks_like_ranks(path: Path) -> bool:
    """Whether the file begins with a line of base64 and a number, as no protobuf does."""
    with path.open("rb") as file:
        fields = file.readline(200).split()
    return len(fields) == 2 and fields[1].isdigit() and _decoded(fields[0]) is not None


def read_ranks(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `tokenizer.json` of a rank file, and the special tokens for `tokenizer_config.json`."""
    scheme: Scheme | None
    if path.name == "tekken.json":
        ranks, first, scheme = _tekken(path)
    else:
        ranks, first = _rank_lines(path), 0
        scheme = _llama3() if path.name == "tokenizer.model" else SCHEMES.get(path.stem)
        if scheme is None:
            known = ", ".join(SCHEMES)
            raise UserError(
                f"{path} does not say how it cuts words; of rank files llmforge knows {known}, Llama 3's "
                "tokenizer.model and tekken.json. Give the tokenizer.json of this tokenizer."
            )
    spelled = [bytelevel.to_piece(raw) for raw in ranks]
    vocabulary = {**scheme.special, **{piece: first + i for i, piece in enumerate(spelled)}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": scheme.pattern}, "behavior": "Isolated", "invert": False}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, content, True) for content, i in scheme.special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": template([(scheme.bos, scheme.special[scheme.bos])], []) if scheme.bos else None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocabulary,
            "merges": merges_by_score({piece: -float(i) for i, piece in enumerate(spelled)}),
        },
    }
    return definition, {"bos_token": scheme.bos, "eos_token": scheme.eos} if scheme.bos else {
        "eos_token": scheme.eos
    }


def _rank_lines(path: Path) -> list[bytes]:
    ranks: list[bytes] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        fields = line.split()
        raw = _decoded(fields[0]) if len(fields) == 2 else None
        if raw is None or fields[1] != str(len(ranks)).encode():
            raise UserError(
                f"{path}, line {number}: not the bytes of rank {len(ranks)} in base64; fetch the file again."
            )
        ranks.append(raw)
    return ranks


def _tekken(path: Path) -> tuple[list[bytes], int, Scheme]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        config = value["config"]
        control = int(config["default_num_special_tokens"])
        wanted = int(config["default_vocab_size"]) - control
        ranks = [base64.b64decode(entry["token_bytes"]) for entry in value["vocab"][:wanted]]
        named = [entry["token_str"] for entry in value.get("special_tokens") or []] or list(TEKKEN_CONTROL)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a tekken.json ({error}); fetch the file again.") from error
    special = {name: i for i, name in enumerate(named)}
    special |= {f"<SPECIAL_{i}>": i for i in range(len(named), control)}
    return ranks, control, Scheme(config["pattern"], special, "<s>", "</s>")


def _decoded(field: bytes) -> bytes | None:
    try:
        return base64.b64decode(field, validate=True) or None
    except binascii.Error:
        return None
