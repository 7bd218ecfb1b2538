"""llama.cpp's name for the way in which a byte-level tokenizer cuts words.

llama.cpp has a list of ways (src/llama-vocab.cpp, `llm_tokenizer_bpe`), each a sequence of regular expressions, and a GGUF
file names one. A tokenizer's own definition is compared with them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.tokenizer.formats.schemes import GPT2, LETTERS_TO_THREE_DIGITS, O200K, QWEN, QWEN3_5

_GPT2_SPELLED = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# What OpenAI writes for LETTERS_TO_THREE_DIGITS since 2024; possessive quantifiers change nothing there.
_CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)
# By the expressions, one after the other: the name with `ignore_merges` off, and with it on.
NAMES: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    (GPT2,): ("gpt-2", None),
    (r"\p{N}", GPT2): ("smollm", None),
    (LETTERS_TO_THREE_DIGITS,): ("smaug-bpe", "llama-bpe"),
    (QWEN,): ("qwen2", None),
    (QWEN3_5,): ("qwen35", None),
    (_TEKKEN,): (None, "tekken"),
    (O200K,): ("gpt-4o", None),
    _DEEPSEEK_V3: ("deepseek-v3", None),
}
# llama.cpp takes letters beyond ASCII for upper and lower case alike in these.
ASCII_CASE = ("tekken", "gpt-4o")
SPELLINGS = {_GPT2_SPELLED: GPT2, _CL100K: LETTERS_TO_THREE_DIGITS}


def pre_tokenizer_name(definition: Mapping[str, Any], place: Path) -> str:
    """The name in GGUF of the way in which the tokenizer `definition` (a `tokenizer.json`) cuts words.

    Raises `UserError` where llama.cpp has no equal, and warns where it has one that differs on rare texts.
    """
    _check_normalizer(definition["normalizer"], place)
    model = definition["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UserError(
            f"{place}: llama.cpp knows no marks at the ends of words; the tokenizer cannot be exported."
        )
    steps = tuple(_expressions(definition["pre_tokenizer"], place))
    names = NAMES.get(steps)
    if names is None:
        raise UserError(
            f"{place}: llama.cpp knows no pre-tokenizer that cuts words as this tokenizer does; it would give other ids. "
            "The model cannot be exported to GGUF."
        )
    ignores = bool(model.get("ignore_merges"))
    name = names[ignores]
    if name is None:
        name = names[not ignores]
        if ignores or not _same_without(definition):
            raise UserError(
                f"{place}: its ignore_merges is {str(ignores).lower()}, with which llama.cpp's pre-tokenizer {name} gives "
                "other ids. The model cannot be exported to GGUF."
            )
    assert name is not None
    if name in ASCII_CASE:
        warn(
            f"{place}: llama.cpp cuts words at changes of case as this tokenizer does in ASCII only; texts with words like "
            "ПриветМир may get other ids."
        )
    return name


def _same_without(definition: Mapping[str, Any]) -> bool:
    """Whether every piece is reached by merges, so that `ignore_merges` makes no difference."""
    import tokenizers

    model = definition["model"]
    vocabulary = dict(model["vocab"])
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [tuple(m) for m in model["merges"]]))
    added = {token["content"] for token in definition["added_tokens"]}
    pieces = [piece for piece in vocabulary if piece not in added]
    return all(len(one.ids) == 1 for one in bare.encode_batch(pieces))


def _check_normalizer(normalizer: Mapping[str, Any] | None, place: Path) -> None:
    if normalizer is None or (normalizer["type"] == "Sequence" and not normalizer["normalizers"]):
        return
    if normalizer["type"] != "NFC":
        raise UserError(
            f"{place}: llama.cpp does not normalize texts ({normalizer['type']}), so it would give other ids. The model "
            "cannot be exported to GGUF."
        )
    warn(
        f"{place}: llama.cpp does not compose characters (NFC) as this tokenizer does; texts that are not composed get other "
        "ids there."
    )


def _expressions(step: Mapping[str, Any] | None, place: Path) -> list[str]:
    """The regular expressions at which a pre-tokenizer cuts, one after the other."""
    if step is None:
        return ["none"]
    kind = step["type"]
    if kind == "Sequence":
        parts = [_expressions(one, place) for one in step["pretokenizers"]]
        return [expression for part in parts for expression in part]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [GPT2] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
    if kind == "Split" and "Regex" in step["pattern"]:
        whole = step["behavior"] == "Removed" and step.get(
            "invert"
        )  # keeps the matches, which cover every text
        if whole or (step["behavior"] == "Isolated" and not step.get("invert")):
            expression = step["pattern"]["Regex"].replace("\r", r"\r").replace("\n", r"\n")
            return [SPELLINGS.get(expression, expression)]
    return [f"{kind} of its own"]
