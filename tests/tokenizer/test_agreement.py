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
from llmforge.tokenizer.options import InitTokenizerOptions, LearnPiecesOptions
from llmforge.tokenizer.word_list import pieces_from_words

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
    init_tokenizer(
        InitTokenizerOptions(tokenizer=both, output=directory / "grown", pieces=directory / "p.jsonl")
    )
    (directory / "bare").mkdir()
    (directory / "bare" / "tokenizer.json").write_bytes((directory / "grown" / "tokenizer.json").read_bytes())
    return directory / "bare"


def sentencepiece(**options: Any) -> Callable[[Path], Path]:
    return lambda directory: makers.sentencepiece_model(directory, **options)


def byte_level(**options: Any) -> Callable[[Path], Path]:
    return lambda directory: makers.byte_level(directory, **options)


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


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


@settings(max_examples=4, deadline=None)
@given(texts=TEXTS)
def test_what_is_learned_is_taken_and_reached(source: Path, texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as work:
        corpus, pieces, target = Path(work) / "c.jsonl", Path(work) / "p.jsonl", Path(work) / "grown"
        write_corpus(corpus, texts)
        try:
            learned = learn_pieces(
                LearnPiecesOptions(
                    tokenizer=source, data=[corpus], output=pieces, num_pieces=60, min_frequency=1
                )
            )
        except UserError as error:
            if "no new token occurs" in str(error):  # white space that is there already, for example
                return
            raise
        grown = init_tokenizer(
            InitTokenizerOptions(tokenizer=source, output=target, pieces=pieces, verify_data=[corpus])
        )
        counts = grown.manifest.metrics["pieces"]
        number = learned.manifest.outputs["pieces"]
        assert (counts["read"], counts["added"], counts["closure"]) == (number, number, 0), counts
        reached = grown.manifest.metrics["gates"]["reachability"]
        assert (reached["unreachable"], reached["source_lost"]) == (0, 0), reached["reasons"]
        assert load(target).size == load(source).size + number


def test_documents_with_line_breaks_and_byte_fallback(
    llmforge: Callable[..., Any], sentencepiece_bpe: Path, byte_level: Path, tmp_path: Path
) -> None:
    texts = [f"标题 {i}\n\n数据库的配置说明：\x07\u2028\n- 第一项\x85\r\n- 第二项\n" for i in range(30)]
    corpus = write_corpus(tmp_path / "t.jsonl", texts)
    for source in (sentencepiece_bpe, byte_level):
        pieces, grown = tmp_path / f"{source.name}.jsonl", tmp_path / source.name
        which = ("--source-tokenizer-dir", source)
        llmforge("learn-pieces", *which, "--corpus", corpus, "--num-pieces", 20, "--output", pieces)
        llmforge("init-tokenizer", *which, "--expand-tokens-file", pieces, "--target-tokenizer-dir", grown)
        learned = [json.loads(line) for line in pieces.read_text().splitlines()]
        assert len(learned) == 20
        if source == sentencepiece_bpe:
            assert all(line["piece"].isprintable() for line in learned)
        reached = json.loads((grown / "llmforge.json").read_text())["metrics"]["gates"]["reachability"]
        assert (reached["new"], reached["unreachable"]) == (20, 0)


def test_a_byte_level_piece_may_hold_what_its_pre_tokenizer_leaves_together(tmp_path: Path) -> None:
    source = makers.byte_level(tmp_path / "llama3", patterns=[LETTERS_TO_THREE_DIGITS], ignore_merges=True)
    together = [
        "：**\n",
        "```\n\n",
        "\r\n\r\n",
        "   ",
        "\t\t",
        "\u3000我们",
        "\u2028\u2028",
        "\x85\x85",
        "\u200b\u200b",
        "▁▁",
    ]
    corpus = write_corpus(tmp_path / "c.jsonl", [piece for piece in together for _ in range(9)])
    learn_pieces(
        LearnPiecesOptions(tokenizer=source, data=[corpus], output=tmp_path / "p.jsonl", num_pieces=99)
    )
    text = (tmp_path / "p.jsonl").read_text()
    assert all(line.isprintable() for line in text.split("\n"))
    assert '{"piece": "：**\\n", "frequency": 9}' in text
    assert f'{{"bytes": "{"▁▁".encode().hex()}", "frequency": 9}}' in text
    init_tokenizer(
        InitTokenizerOptions(tokenizer=source, output=tmp_path / "learned", pieces=tmp_path / "p.jsonl")
    )
    (tmp_path / "user.jsonl").write_text(
        "".join(json.dumps({"bytes": p.encode().hex()}) + "\n" for p in together)
    )
    init_tokenizer(
        InitTokenizerOptions(tokenizer=source, output=tmp_path / "given", pieces=tmp_path / "user.jsonl")
    )
    for grown in map(load, (tmp_path / "learned", tmp_path / "given")):
        assert set(map(str.encode, together)) <= set(grown.token_bytes())
        assert [len(grown.encode([piece])[0]) for piece in together] == [1] * len(together)
    (tmp_path / "cut.jsonl").write_text('{"piece": "我们"}\n{"piece": "我们\\n"}\n')
    with pytest.raises(
        UserError, match=r"cut\.jsonl, line 2: .* a line break, which the source tokenizer never joins"
    ):
        init_tokenizer(
            InitTokenizerOptions(tokenizer=source, output=tmp_path / "cut", pieces=tmp_path / "cut.jsonl")
        )


def test_pieces_in_other_files(sentencepiece_bpe: Path, byte_level: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeff我们\r\n国家\r\n▁国家\r\n\r\n".encode())
    (tmp_path / "m.vocab").write_text("<unk>\t0\n<s>\t0\n我们\t-1.5\n国家\t-2e3\n▁国家\t-3\n")
    (tmp_path / "b.jsonl").write_bytes("\ufeff".encode() + '{"piece": "我们", "score": -1}\n'.encode())
    for source in (sentencepiece_bpe, byte_level):
        for name in ("p.txt", "m.vocab", "b.jsonl"):
            target = tmp_path / f"{source.name}-{name}"
            init_tokenizer(
                InitTokenizerOptions(tokenizer=source, output=target, pieces=tmp_path / name, closure=False)
            )
            added = [raw.decode() for raw in load(target).token_bytes()[load(source).size :]]
            assert added == ["我们", "国家", " 国家"][: len(added)]
            assert len(added) == (1 if name == "b.jsonl" else 3)
    for content, match in (
        ("今天 50 n\n", "line 1: .*--word-list"),
        ("我们\n我们 \n", "line 2: .*ends in a space"),
        ("我们\tn\n", "line 1: .*not a score"),
    ):
        (tmp_path / "bad.txt").write_text(content)
        with pytest.raises(UserError, match=rf"bad\.txt, {match}"):
            init_tokenizer(
                InitTokenizerOptions(
                    tokenizer=byte_level, output=tmp_path / "bad", pieces=tmp_path / "bad.txt"
                )
            )
    with pytest.raises(UserError, match="give its directory"):
        init_tokenizer(
            InitTokenizerOptions(
                tokenizer=byte_level, output=tmp_path / "bad", pieces=byte_level / "tokenizer.json"
            )
        )


def test_a_word_list_offers_what_the_source_leaves_together(byte_level: Path, tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("21世纪 90 m\n我们 80 r\n卡拉OK 70 n\nＴ恤 60 n\n")
    learned = pieces_from_words(
        LearnPiecesOptions(
            tokenizer=byte_level, word_list=[tmp_path / "dict.txt"], output=tmp_path / "p.jsonl", num_pieces=9
        )
    )
    assert learned.manifest.metrics == {"words": 4, "cut_by_the_source": 1}
    grown = init_tokenizer(
        InitTokenizerOptions(tokenizer=byte_level, output=tmp_path / "grown", pieces=tmp_path / "p.jsonl")
    )
    assert grown.manifest.metrics["gates"]["reachability"]["unreachable"] == 0


def test_the_gate_sees_added_tokens_that_cut_a_piece(tmp_path: Path) -> None:
    source = makers.sentencepiece_model(tmp_path / "source", user_defined_symbols=["我们"])
    (tmp_path / "p.jsonl").write_text('{"piece": "我们的"}\n{"piece": "国家"}\n')
    reached = init_tokenizer(
        InitTokenizerOptions(tokenizer=source, output=tmp_path / "out", pieces=tmp_path / "p.jsonl")
    ).manifest.metrics["gates"]["reachability"]
    grown = load(tmp_path / "out")
    assert grown.pieces().index("我们的") not in grown.encode(["我们的"])[0]
    assert reached["reasons"] == {"我们的": "it is encoded as 我们 + 的"}
