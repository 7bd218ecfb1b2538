"""Whatever `learn-pieces` writes, `init-tokenizer` takes: over random texts with all white space there is."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from llmforge.errors import UserError
from llmforge.tokenizer import load
from llmforge.tokenizer.expand import init_tokenizer
from llmforge.tokenizer.formats.schemes import GPT2, LETTERS_TO_THREE_DIGITS, O200K
from llmforge.tokenizer.learn import learn_pieces

from . import makers

WHITE = [chr(c) for c in (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B))]
WHITE += [
    "\u2028",
    "\u2029",
    "\u202f",
    "\u205f",
    "\u3000",
    "\r\n",
    "\n\n",
    "    ",
    "\n ",
    " \n",
    "\t\t",
    "\n\n\n",
]
UNSEEN = [
    "\u200b",
    "\u200c",
    "\u200d",
    "\u2060",
    "\ufeff",
    "\xad",
    "\x00",
    "\x07",
    "\x1b[0m",
    "\x7f",
    "\x9f",
    "\uffff",
]
SPECIAL = [
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<0x0A>",
    "<unk>",
    "▁",
    "▁▁",
    "Ġ",
    "Ċ",
    "Ã¤",
    "##",
    "<sep>",
    "我们",
]
SCRIPTS = [
    "数据库",
    "。**",
    "：",
    "，我",
    "```",
    "カタカナー",
    "ひらがな",
    "한국어",
    "한국어",
    "نَصّ",
    "می‌خواهم",
    "हिन्दी",
]
SCRIPTS += [
    "ภาษาไทย",
    "é",
    "e\u0301",
    "ﬁ",
    "①",
    "ｋｇ",
    "🙂",
    "👩‍👩‍👧",
    "🇨🇳",
    "the",
    "cat",
    "'s",
    "I'LL",
    "A1",
    "2024",
    "३",
]
TEXTS = st.lists(
    st.lists(st.sampled_from([*WHITE, *UNSEEN, *SPECIAL, *SCRIPTS]), min_size=1, max_size=12).map("".join),
    min_size=1,
    max_size=5,
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    r"[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
SPACES = [" " * n for n in range(2, 9)]


def json_alone(directory: Path) -> Path:
    """The grown tokenizer of `sentencepiece_model` without its protobuf, as Gemma or Yi are often had."""
    both = makers.sentencepiece_model(directory / "both")
    (directory / "p.jsonl").write_text('{"piece": "们"}\n')
    init_tokenizer(both, directory / "grown", directory / "p.jsonl")
    (directory / "bare").mkdir()
    (directory / "bare" / "tokenizer.json").write_bytes((directory / "grown" / "tokenizer.json").read_bytes())
    return directory / "bare"


def sentencepiece(**options: Any) -> Callable[[Path], Path]:
    return lambda directory: makers.sentencepiece_model(directory, **options)


def byte_level(**options: Any) -> Callable[[Path], Path]:
    return lambda directory: makers.byte_level(directory, **options)


SOURCES = {
    "llama": sentencepiece(),
    "no-byte-fallback": sentencepiece(byte_fallback=False),
    "nmt-nfkc": sentencepiece(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True),
    "no-dummy-prefix": sentencepiece(add_dummy_prefix=False, split_digits=False),
    "user-defined": sentencepiece(user_defined_symbols=["<sep>", "我们"], control_symbols=["数据", "the"]),
    "json-alone": json_alone,
    "unigram": sentencepiece(kind="unigram"),
    "unigram-nfkc": sentencepiece(kind="unigram", byte_fallback=False, normalization_rule_name="nmt_nfkc"),
    "gpt2": byte_level(),
    "gpt2-prefix-space": byte_level(add_prefix_space=True),
    "no-regex": byte_level(use_regex=False),
    "gpt-neox": byte_level(normalizer=normalizers.NFC(), added=[*SPACES, "<sep>", "我们"]),
    "lower-case": byte_level(normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
    "llama3": byte_level(patterns=[LETTERS_TO_THREE_DIGITS], ignore_merges=True),
    "qwen": byte_level(patterns=[LETTERS_TO_THREE_DIGITS.replace("{1,3}", "")], normalizer=normalizers.NFC()),
    "smollm": byte_level(patterns=[r"\p{N}", GPT2]),
    "deepseek": byte_level(patterns=DEEPSEEK),
    "tekken": byte_level(patterns=[O200K], ignore_merges=True),
}


@pytest.fixture(params=SOURCES, scope="module")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SOURCES[request.param](tmp_path_factory.mktemp("sources") / request.param)


@settings(max_examples=8, deadline=None)
@given(texts=TEXTS)
def test_what_is_learned_is_taken_and_reached(source: Path, texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as work:
        corpus, pieces, target = Path(work) / "c.jsonl", Path(work) / "p.jsonl", Path(work) / "grown"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        try:
            learned = learn_pieces(source, [corpus], pieces, 60, min_frequency=1)
        except UserError as error:
            if "may be a piece" in str(error):  # white space that is there already, for example
                return
            raise
        grown = init_tokenizer(source, target, pieces, verify_corpora=[corpus])
        counts = grown.manifest.metrics["pieces"]
        number = learned.manifest.outputs["pieces"]
        assert (counts["read"], counts["added"], counts["closure"]) == (number, number, 0), counts
        reached = grown.manifest.metrics["gates"]["reachability"]
        assert (reached["unreachable"], reached["source_lost"]) == (0, 0), reached["reasons"]
        assert load(target).size == load(source).size + number
