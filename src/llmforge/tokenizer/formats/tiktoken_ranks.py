"""tiktoken's ranks as a `tokenizer.json`: `*.tiktoken`, `tokenizer.model`, `tiktoken.model`, Mistral's `tekken.json`.

tiktoken merges the adjacent pair whose joint bytes have the lowest rank, and takes a whole word that is a
token as it is (`ignore_merges`). A rank file has neither the pattern that cuts words nor the special tokens: formats/
schemes.py has them; `tekken.json` has both. (openai/tiktoken, src/lib.rs)
"""

import base64
import binascii
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.sizes import refuse_large
from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.formats.config import read_json
from llmforge.tokenizer.formats.framing import template
from llmforge.tokenizer.formats.schemes import SCHEMES, Scheme
from llmforge.tokenizer.formats.sentencepiece_model import added_token, merges_by_score
from llmforge.tokenizer.formats.shapes import MOST_UNUSED_IDS, first_twice

REMEDY = (
    'choose one with --tokenizer-scheme or, for commands without it, "tokenizer_scheme" in a tokenizer_config.json '
    "beside it; or give the tokenizer.json of this tokenizer"
)
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
    """The rank file in `directory`, if there is one; `UserError` where there are several."""
    models = [p for p in (directory / "tokenizer.model", directory / "tiktoken.model") if p.is_file()]
    found = [
        *sorted(p for p in directory.glob("*.tiktoken") if p.is_file()),
        *sorted(p for p in directory.glob("tekken*.json") if p.is_file()),
        *(p for p in models if looks_like_ranks(p)),
    ]
    if len(found) > 1:
        names = " and ".join(p.name for p in found)
        raise UserError(f"{directory} contains the ranks of several tokenizers, {names}; keep one of them.")
    return found[0] if found else None


def looks_like_ranks(path: Path) -> bool:
    """Whether the file begins with a line of base64 and a number, as no protobuf does."""
    with path.open("rb") as file:
        fields = file.readline(200).split()
    return len(fields) == 2 and fields[1].isdigit() and _decoded(fields[0]) is not None


def read_ranks(
    path: Path, config: dict[str, Any], name: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `tokenizer.json` of a rank file, and the special tokens for `tokenizer_config.json`.

    `config` is the checked configuration beside it; `name` is the scheme where the user says it.
    """
    if path.name.startswith("tekken"):
        ranks, scheme = _tekken(path)
    else:
        ranks = _rank_lines(path)
        scheme = SCHEMES[name] if name else _told(path, ranks, config)
    spelled = {bytelevel.to_piece(raw): rank for rank, raw in ranks.items()}
    special = _special(scheme, ranks, config, path)
    ids = {content: i for i, content in special.items()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": scheme.pattern}, "behavior": "Isolated", "invert": False}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, content, True) for i, content in sorted(special.items())],
        "normalizer": {"type": "NFC"} if scheme.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": template([(token, ids[token]) for token in scheme.prefix if token in ids], []),
        "decoder": {**byte_level, "use_regex": True},
        "model": bytelevel.bpe_model(
            {**ids, **spelled},
            merges_by_score({piece: -float(rank) for piece, rank in spelled.items()}),
            ignore_merges=True,
        ),
    }
    named = {"bos_token": scheme.bos, "eos_token": scheme.eos, "pad_token": scheme.pad}
    return definition, {key: token for key, token in named.items() if token in ids}


def spelled_ranks(path: Path) -> dict[str, int]:
    """The pieces of a rank file that is no `tekken.json`, with their ranks."""
    return {bytelevel.to_piece(raw): rank for rank, raw in _rank_lines(path).items()}


def _told(path: Path, ranks: dict[int, bytes], config: dict[str, Any]) -> Scheme:
    """The scheme that `ranks` are of; its name decides only between schemes of the same ranks."""
    written = config.get("tokenizer_scheme")
    if written is not None:
        if written not in SCHEMES:
            raise UserError(
                f"{path.parent / 'tokenizer_config.json'}: tokenizer_scheme is {written!r}; it can be "
                f"{', '.join(SCHEMES)}."
            )
        return SCHEMES[written]
    fitting = [name for name, scheme in SCHEMES.items() if scheme.ranks == len(ranks)]
    if len(fitting) == 1:
        return SCHEMES[fitting[0]]
    if path.stem in fitting:
        return SCHEMES[path.stem]
    if fitting:
        raise UserError(f"{path} fits several tokenizers: {' and '.join(fitting)}; {REMEDY}.")
    known = ", ".join(f"{name} ({scheme.ranks:,})" for name, scheme in SCHEMES.items())
    raise UserError(
        f"{path} has {len(ranks):,} ranks, which is not the number of any tokenizer that llmforge knows: {known}. A rank file does "
        f"not say how text is split into words. If the tokenizer splits like one of these, {REMEDY}."
    )


def _special(scheme: Scheme, ranks: dict[int, bytes], config: dict[str, Any], path: Path) -> dict[int, str]:
    """The special tokens by id: the scheme's, with the names that the configuration gives to the same ids."""
    special = {i: content for content, i in scheme.special.items()}
    configured = {i: token["content"] for i, token in config["added_tokens_decoder"].items()}
    special = {
        i: content for i, content in special.items() if content not in configured.values()
    } | configured
    if taken := sorted(special.keys() & ranks.keys()):
        raise UserError(
            f"{path}: the id {taken[0]} belongs to both the token {ranks[taken[0]]!r} and the special token "
            f"{special[taken[0]]!r}; {REMEDY}."
        )
    return special


def _rank_lines(path: Path) -> dict[int, bytes]:
    """Ranks in ascending order; some files leave out the ids of special tokens."""
    ranks: dict[int, bytes] = {}
    last = -1
    for number, line in enumerate(refuse_large(path).read_bytes().splitlines(), 1):
        fields = line.split()
        raw = (
            _decoded(fields[0]) if len(fields) == 2 and fields[1].isdigit() and len(fields[1]) < 10 else None
        )
        if raw is None or not last < (rank := int(fields[1])) <= last + MOST_UNUSED_IDS:
            raise UserError(
                f"{path}, line {number}: not bytes in base64 and a rank above {last}; download the file again."
            )
        ranks[rank] = raw
        last = rank
    _check_ranks(ranks, path)
    return ranks


def _check_ranks(ranks: dict[int, bytes], path: Path) -> None:
    if len(set(ranks.values())) < len(ranks):
        first = first_twice(list(ranks.values()))
        raise UserError(f"{path} has the bytes {first!r} at two ranks; download the file again.")
    if missing := {bytes([byte]) for byte in range(256)} - set(ranks.values()):
        raise UserError(
            f"{path} has no rank for the byte {min(missing)!r}, so it is truncated; download the file again."
        )


def _tekken(path: Path) -> tuple[dict[int, bytes], Scheme]:
    value = read_json(path)
    try:
        config = value["config"]
        control, size, pattern = (
            config[key] for key in ("default_num_special_tokens", "default_vocab_size", "pattern")
        )
        if not 0 <= control < size < 2**31 or not isinstance(pattern, str):
            raise ValueError(f"config: {control} special tokens, a vocabulary of {size}")
        wanted = size - control
        if len(value["vocab"]) < wanted:
            raise ValueError(
                f"config.default_vocab_size is {size}, but vocab has {len(value['vocab'])} entries"
            )
        entries = [entry["token_bytes"] for entry in value["vocab"][:wanted]]
        ranks = {control + i: base64.b64decode(entry, validate=True) for i, entry in enumerate(entries)}
        order = [entry.get("rank", i) for i, entry in enumerate(value["vocab"][:wanted])]
        if order != list(range(wanted)):
            raise ValueError("vocab: the ranks are not in order")
        listed = value.get("special_tokens") or [
            {"rank": i, "token_str": name} for i, name in enumerate(TEKKEN_CONTROL)
        ]
        names = {int(entry["rank"]): str(entry["token_str"]) for entry in listed}
        if len(names) != len(listed) or len(set(names.values())) != len(names) or max(names) >= control:
            raise ValueError("special_tokens: a rank or a name twice, or a rank of the vocabulary")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a tekken.json ({error}); download the file again.") from error
    _check_ranks(ranks, path)
    special = {names.get(i, f"<SPECIAL_{i}>"): i for i in range(control)}
    return ranks, Scheme(wanted, pattern, special, ("<s>",), "</s>", "<s>", "<pad>")


def _decoded(field: bytes) -> bytes | None:
    try:
        return base64.b64decode(field, validate=True) or None
    except binascii.Error:
        return None
