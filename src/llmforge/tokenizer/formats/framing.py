"""Which tokens a tokenizer puts around a text: its class, its configuration and its post-processor, as transformers.

    class of the configuration        transformers 4.51                    transformers 5
    Llama, CodeLlama, Gemma, Cohere   add_bos_token, true by default       the post-processor
    GPTNeoX                           add_bos_token, false by default      the post-processor
    any other                         the post-processor                   the post-processor
    without tokenizer.json            add_bos_token                        add_bos_token

and so for add_eos_token, which no class has true. Where the two versions differ, we do as 4.51, whose classes these
are, and say so. What is written has the answer in its post-processor, which is all that either version then reads.
(transformers, `update_post_processor` of the fast classes; `_from_pretrained` of 5 drops both flags)
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

from llmforge import console
from llmforge.tokenizer.formats.config import read_json

# Classes that make their own post-processor in transformers 4, with what `add_bos_token` is by default.
FRAMING_CLASSES = {
    "LlamaTokenizer": True,
    "CodeLlamaTokenizer": True,
    "GemmaTokenizer": True,
    "CohereTokenizer": True,
    "GPTNeoXTokenizer": False,
}
# Classes that put both <s> and </s> around a text.
FRAMED = ("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer", "MvpTokenizer")
# What special tokens are called where the configuration does not say.
_ANGLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_END = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
DEFAULT_NAMES = {
    "LlamaTokenizer": _ANGLES,
    "CodeLlamaTokenizer": _ANGLES,
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    },
    "CohereTokenizer": {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"},
    "GPTNeoXTokenizer": _END,
    "GPT2Tokenizer": _END,
    "CodeGenTokenizer": _END,
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    **{name: {**_ANGLES, "pad_token": "<pad>", "mask_token": "<mask>"} for name in FRAMED},
}
# The class that transformers 4.51 takes by the type of the model, where the configuration names none.
CLASS_OF_MODEL = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "phi3", "phimoe"), "LlamaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("gpt_neox", "olmo", "olmo2", "olmoe", "stablelm", "mpt"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "opt", "starcoder2", "phi"), "GPT2Tokenizer"),
}


def tokenizer_class(config: dict[str, Any], directory: Path) -> str:
    """The class of the tokenizer without `Fast`, from its configuration or else the model's; "" if unknown."""
    named = config.get("tokenizer_class")
    model_type = read_json(directory / "config.json").get("model_type")
    by_model = CLASS_OF_MODEL.get(model_type, "") if isinstance(model_type, str) else ""
    return str(named or by_model).removesuffix("Fast")


def add_default_names(config: dict[str, Any], name: str, known: Container[str]) -> None:
    """Names in `config` the special tokens of the class `name` that it leaves out and the vocabulary has."""
    for key, token in DEFAULT_NAMES.get(name, {}).items():
        if token in known:
            config.setdefault(key, token)


def decide_frame(definition: dict[str, Any], config: dict[str, Any], directory: Path) -> None:
    """Makes the post-processor of `definition`, read from `tokenizer.json`, put what transformers puts around a text."""
    name = tokenizer_class(config, directory)
    found = special_around(definition["post_processor"])
    flags = [config.get("add_bos_token"), config.get("add_eos_token")]
    if name not in FRAMING_CLASSES:
        _say_ignored(config, flags, found, directory)
        return
    wanted = [FRAMING_CLASSES[name] if flags[0] is None else flags[0], bool(flags[1])]
    before, after = _named_around(definition, config, wanted)
    if found == ([token for token, _ in before], [token for token, _ in after]):
        return
    if found is not None:
        console.warn(
            f"{directory}: transformers 4 adds {_spell(before, after)} to a text, because tokenizer_class is "
            f"{name}; transformers 5 follows tokenizer.json, which adds {_spell(*_pairs(found))}. llmforge does the same as "
            "transformers 4."
        )
    definition["post_processor"] = template(before, after)


def frame_by_flags(definition: dict[str, Any], config: dict[str, Any], name: str, default: bool) -> None:
    """The same for a tokenizer that has no `tokenizer.json`: its class and configuration decide alone.

    `default` is what `add_bos_token` is where neither says it.
    """
    if name in FRAMED:
        wanted = [True, True]
    else:
        add_bos, add_eos = config.get("add_bos_token"), config.get("add_eos_token")
        wanted = [FRAMING_CLASSES.get(name, default) if add_bos is None else add_bos, bool(add_eos)]
    definition["post_processor"] = template(*_named_around(definition, config, wanted))


def special_around(processor: Any) -> tuple[list[str], list[str]] | None:
    """The special tokens that a post-processor puts before and after a text; None where it cannot be told."""
    if processor is None or processor["type"] == "ByteLevel":
        return [], []
    if processor["type"] == "Sequence":
        parts = [special_around(part) for part in processor["processors"]]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return [t for before, _ in reversed(known) for t in before], [t for _, after in known for t in after]
    try:
        if processor["type"] != "TemplateProcessing":
            return [processor["cls"][0]], [processor["sep"][0]]
        single = [next(iter(part.items())) for part in processor["single"]]
        place = [kind for kind, _ in single].index("Sequence")
        names = [part["id"] for _, part in single]
        return names[:place], names[place + 1 :]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration):
        return None  # `tokenizers` says what is wrong with it


def template(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> dict[str, Any] | None:
    """A post-processor that puts special tokens, each (content, id), around a text; None for none."""
    if not before and not after:
        return None

    def one(sequence: str, type_id: int) -> list[dict[str, Any]]:
        def special(content: str) -> dict[str, Any]:
            return {"SpecialToken": {"id": content, "type_id": type_id}}

        text = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [
            *(special(content) for content, _ in before),
            text,
            *(special(content) for content, _ in after),
        ]

    tokens = {content: {"id": content, "ids": [id], "tokens": [content]} for content, id in [*before, *after]}
    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": [*one("A", 0), *one("B", 1)],
        "special_tokens": tokens,
    }


def frame_flags(definition: dict[str, Any], config: dict[str, Any]) -> dict[str, bool]:
    """`add_bos_token` and `add_eos_token` as the post-processor has it; {} where it puts other tokens than those."""
    around = special_around(definition["post_processor"])
    if around is None:
        return {}
    named = [config.get("bos_token"), config.get("eos_token")]
    if any(tokens not in ([], [name]) for tokens, name in zip(around, named, strict=True)):
        return {}
    return {"add_bos_token": bool(around[0]), "add_eos_token": bool(around[1])}


def _named_around(
    definition: dict[str, Any], config: dict[str, Any], wanted: list[bool]
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    ids = {token["content"]: token["id"] for token in definition["added_tokens"]}
    named = [config.get("bos_token"), config.get("eos_token")]
    before, after = (
        [(token, ids[token])] if wish and token else [] for wish, token in zip(wanted, named, strict=True)
    )
    return before, after


def _say_ignored(config: dict[str, Any], flags: list[Any], found: Any, directory: Path) -> None:
    for name, flag, tokens in zip(("add_bos_token", "add_eos_token"), flags, found or (), strict=False):
        if flag is not None and flag != bool(tokens) and (tokens or config.get(name[4:])):
            puts = " ".join(tokens) or "no such token"
            console.warn(
                f"{directory}: {name} is {str(flag).lower()}, but tokenizer.json adds {puts}. llmforge does the same as "
                "transformers 4.51 and 5, which follow tokenizer.json; some versions between them follow the flag."
            )


def _pairs(found: tuple[list[str], list[str]]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    return [(token, 0) for token in found[0]], [(token, 0) for token in found[1]]


def _spell(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> str:
    if not before and not after:
        return "nothing"
    return " ".join([*(token for token, _ in before), "...", *(token for token, _ in after)])
