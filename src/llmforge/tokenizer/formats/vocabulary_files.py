"""`vocab.json` and `merges.txt` (GPT-2, OPT, Qwen2, RoBERTa) as a `tokenizer.json`."""

from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.sizes import refuse_large
from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.formats.config import read_json
from llmforge.tokenizer.formats.framing import add_default_names
from llmforge.tokenizer.formats.schemes import QWEN
from llmforge.tokenizer.formats.shapes import vocabulary

# Classes that cut words as GPT-2 does, or as is written here.
CLASSES = (
    *("", "GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizer", "TokenizersBackend"),
    *("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer", "MvpTokenizer"),
)


def read(directory: Path, config: dict[str, Any], kind: str) -> dict[str, Any]:
    """The `tokenizer.json` of the two files in `directory`, which puts nothing around a text; names in `config` the
    special tokens of the class `kind`.
    """
    if kind not in CLASSES:
        raise UserError(
            f"{directory} has vocab.json and merges.txt of the class {kind}, whose pre-tokenizer llmforge does not know; give its "
            "tokenizer.json (transformers writes one with save_pretrained)."
        )
    merges_file, vocabulary_file = directory / "merges.txt", directory / "vocab.json"
    pieces = vocabulary(read_json(vocabulary_file), "the vocabulary", vocabulary_file)
    if "Ġ" not in pieces:  # how a byte-level vocabulary writes a space
        raise UserError(
            f"{vocabulary_file} is not byte-level; give the tokenizer.json of this tokenizer (transformers writes one with "
            "save_pretrained)."
        )
    merges = _merges(merges_file, pieces)
    add_default_names(config, kind or "GPT2Tokenizer", pieces)
    space = bool(config.get("add_prefix_space"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True, "use_regex": True}
    pre_tokenizer: dict[str, Any] = byte_level
    if kind == "Qwen2Tokenizer":
        split = {"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if kind == "Qwen2Tokenizer" else None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": byte_level,
        "model": bytelevel.bpe_model(pieces, merges, ignore_merges=False),
    }


def _merges(path: Path, pieces: dict[str, int]) -> list[tuple[str, str]]:
    try:
        lines = refuse_large(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); download the file again.") from error
    merges = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#version"):
            continue
        pair = line.removesuffix("\r").split(" ")
        if (
            len(pair) != 2
            or pair[0] + pair[1] not in pieces
            or pair[0] not in pieces
            or pair[1] not in pieces
        ):
            raise UserError(
                f"{path}, line {number}: not two tokens whose concatenation is in vocab.json; download the files again."
            )
        merges.append((pair[0], pair[1]))
    return merges
