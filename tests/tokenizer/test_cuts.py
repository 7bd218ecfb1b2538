"""Where a text is cut, the ids of the parts are those of the whole, with tokenizers of every kind."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llmforge.tokenizer import Tokenizer, load
from llmforge.tokenizer.adjacency import Adjacency, UnknownError
from llmforge.tokenizer.cuts import Cuts

LARGE = ("mistral-v3", "llama3", "deepseek", "tekken-2407")  # which take seconds to load
REAL = ("mistral", "smollm2", "gpt2", "qwen", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE))
PIECES = (
    *(" ", "  ", "\n", "\n\n", " \n", "\t", "\r\n", "\u3000", "\u00a0", "\u2028"),
    *(
        ".",
        ",",
        "，",
        "。",
        "、",
        "！",
        "'s",
        "'",
        "’t",
        "...",
        "//",
        "))",
        "：**",
        "```",
        "$",
        "<s>",
        "<|endoftext|>",
    ),
    *("1", "12", "1234567", "²", "①", "１２", "〇", "٣"),
    *("a", "The", "the cat", "École", "e\u0301", "ﬁ", "ŉ", "HELLO", "iPhone", "\u0130", "ς", "ß"),
    *(
        "公园",
        "散步",
        "里",
        "カタ",
        "한국",
        "मैं",
        "ไทย",
        "שלום",
        "نص",
        "▁",
        "▁▁",
        "😀",
        "👨‍👩‍👧",
        "\u200d",
        "\u0d4e",
        "\x04",
    ),
)


def texts(count: int, seed: int = 0) -> list[str]:
    chosen = random.Random(seed)
    return ["".join(chosen.choices(PIECES, k=chosen.randint(2, 30))) for _ in range(count)]


def assert_parts_are_the_whole(tokenizer: Tokenizer, samples: list[str]) -> int:
    """Compares every cut of every sample; returns how many there were."""
    cuts, compared = Cuts(tokenizer.definition.json), 0

    def ids(some: list[str]) -> list[list[int]]:
        return [one.ids for one in tokenizer.backend.encode_batch(some, add_special_tokens=False)]

    for text, whole in zip(samples, ids(samples), strict=True):
        data = text.encode()
        places = {cut for size in range(1, len(data)) for cut in cuts.find(memoryview(data), size)[:1]}
        heads = [data[:cut].decode() for cut in places]
        leads = [head[-1] for head in heads]
        tails = [lead + text[len(head) :] for lead, head in zip(leads, heads, strict=True)]
        found = (ids(heads), ids(leads), ids(tails))
        for head, lead, tail, where in zip(*found, heads, strict=True):
            assert tail[: len(lead)] == lead, (text, where)
            assert head + tail[len(lead) :] == whole, (text, where)
            compared += 1
    return compared


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_give_the_ids_of_the_whole(real_input: Callable[[str], Path], name: str) -> None:
    assert assert_parts_are_the_whole(load(real_input(name)), texts(100)) > 100


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
PRE_TOKENIZERS = [
    *[[split(r"\s+|\p{L}+", behavior)] for behavior in ("Isolated", "MergedWithPrevious", "MergedWithNext")],
    [split(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))"), split(r" ?\p{L}+| ?[^\s\p{L}]+|\s+(?!\S)|\s+")],
    [split(r"\b\w+\b|\W")],
    [
        split(
            r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
        )
    ],
    [{"type": "Digits", "individual_digits": False}, {**BYTES, "use_regex": True, "add_prefix_space": True}],
    [split(r"[\p{L}\s]+")],
    [split(r".*\n|.+", "Isolated")],
    [split(r"\p{L}+", "Isolated", invert=True)],
]


@pytest.mark.parametrize("steps", PRE_TOKENIZERS)
def test_any_pre_tokenizer_gives_the_ids_of_the_whole(
    tiny_tokenizer: Path, tmp_path: Path, steps: list[dict[str, object]]
) -> None:
    definition = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    with_bytes = steps if steps[-1]["type"] == "ByteLevel" else [*steps, BYTES]
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": with_bytes}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert_parts_are_the_whole(load(tmp_path), texts(60, 1))


def test_an_added_token_and_a_piece_over_the_cut_are_not_cut(
    real_input: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = load(real_input("mistral")).definition.json
    assert Cuts(plain).safe("k", " ")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokens = [*plain["added_tokens"], {"id": 32_000, "content": "New York", **flags}]
    assert not Cuts({**plain, "added_tokens": tokens}).safe("w", " ")
    assert Cuts({**plain, "added_tokens": tokens}).safe("k", " ")
    tokens[-1] = {**tokens[-1], "content": "[link", "rstrip": True}
    assert not Cuts({**plain, "added_tokens": tokens}).safe("k", " ")
    model = {**plain["model"], "vocab": {**plain["model"]["vocab"], "▁New▁York": 32_000}}
    assert not Cuts({**plain, "model": model}).safe("w", " ")
    assert not Cuts({**plain, "model": {**plain["model"], "ignore_merges": True}}).safe("k", " ")


@pytest.mark.parametrize(
    ("pattern", "joined", "apart"),
    [
        (r" ?\p{L}+|\s+(?!\S)|\s+", ["ab", " a", "  "], ["a ", "a\n", "é "]),
        (r"\p{L}+(?=\d)|.", ["a1"], ["a ", "1 "]),
        (r"(?i:'s|'re)|x{1,1}|.", ["'S", "rE"], ["xx", "s'"]),
        (r"x{2}|a(?:b|cd)*e|.", ["xx", "ab", "bc", "de", "ae", "bb"], ["ec", "ca", "ad"]),
        (r"[^\s\]a-c]+\$|.", ["d$", "de"], ["a$", "]d"]),
        (r"a$|b\b|.", ["a ", "b."], ["c ", "c."]),
    ],
)
def test_what_an_expression_can_join(pattern: str, joined: list[str], apart: list[str]) -> None:
    adjacency = Adjacency(pattern)
    assert [pair for pair in joined + apart if adjacency.joins(*pair)] == joined


@pytest.mark.parametrize(
    "pattern", [r"(?<=a)b", r"(a)\1", r"a*", r"(?P<x>a)", "[[:alpha:]]", "(a", "[a", r"\K", ""]
)
def test_an_expression_that_is_not_understood_is_not_guessed(pattern: str) -> None:
    with pytest.raises(UnknownError):
        Adjacency(pattern)
