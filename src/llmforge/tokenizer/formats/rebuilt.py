"""How transformers 5 cuts words where the class of a tokenizer makes its own normalizer and pre-tokenizer.

Of a `tokenizer.json`, such a class takes the vocabulary, the merges and the post-processor alone (transformers 5.24,
`TokenizersBackend.convert_to_native_format`, and the `__init__` of each class); transformers 4 goes by the file, and so
does llmforge. AutoTokenizer goes by the file as well where the model's type has another class, and, since 5.24, for
byte-level files of the class Llama.
"""

from pathlib import Path
from typing import Any

from llmforge import console
from llmforge.tokenizer.formats.config import read_json
from llmforge.tokenizer.formats.framing import CLASS_OF_MODEL

_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "use_regex": True}
# The steps of normalizer and pre-tokenizer, each by the fields that change how a text is cut.
STEPS: dict[str, list[dict[str, Any]]] = {
    "LlamaTokenizer": [{"type": "Metaspace", "replacement": "▁", "split": False}],
    "CodeLlamaTokenizer": [{"type": "Metaspace", "replacement": "▁", "split": False}],
    "GemmaTokenizer": [
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    ],
    "GPT2Tokenizer": [_BYTES],
    "CodeGenTokenizer": [_BYTES],
    "GPTNeoXTokenizer": [{"type": "NFC"}, _BYTES],
    "CohereTokenizer": [{"type": "NFC"}, {"type": "Digits", "individual_digits": True}, _BYTES],
    "Qwen2Tokenizer": [
        {"type": "NFC"},
        {"type": "Split", "pattern": {"Regex": _QWEN2}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "use_regex": False},
    ],
}


def warn_of_other_words(definition: dict[str, Any], config: dict[str, Any], directory: Path) -> None:
    """Says where transformers 5 may cut the words of `directory` otherwise than its `tokenizer.json` says."""
    named = str(config.get("tokenizer_class")).removesuffix("Fast")
    model_type = read_json(directory / "config.json").get("model_type")
    if named not in STEPS or (isinstance(model_type, str) and CLASS_OF_MODEL.get(model_type, named) != named):
        return
    found = steps(definition)
    if named == "LlamaTokenizer" and any(step["type"] == "ByteLevel" for step in found):
        return
    wanted = STEPS[named]
    if len(found) != len(wanted) or any(
        key not in step or step[key] != value
        for step, known in zip(found, wanted, strict=True)
        for key, value in known.items()
    ):
        console.warn(
            f"{directory}: transformers 5 builds the normalizer and pre-tokenizer of {named} itself, and they are not those "
            "of tokenizer.json: some texts may have other ids there. llmforge follows tokenizer.json, like "
            "transformers 4; what it writes has the same ids in both."
        )


def steps(definition: dict[str, Any]) -> list[dict[str, Any]]:
    """The normalizer and the pre-tokenizer, sequences taken apart."""
    found, open_ = [], [definition.get("pre_tokenizer"), definition.get("normalizer")]
    while open_:
        step = open_.pop()
        if step is None:
            continue
        if step["type"] == "Sequence":
            open_ += reversed(step.get("pretokenizers") or step.get("normalizers") or [])
        else:
            found.append(step)
    return found
