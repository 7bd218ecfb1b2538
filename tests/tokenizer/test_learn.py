"""`learn-pieces`: pieces in an order in which they can be merged."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from llmforge.errors import UserError
from llmforge.tokenizer import load
from llmforge.tokenizer.continued_bpe import Rules, Words, learn
from llmforge.tokenizer.learn import learn_pieces
from llmforge.tokenizer.options import LearnPiecesOptions

from . import makers


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"target": text}, ensure_ascii=False) + "\n" for text in texts))
    return path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def learn_from(words: dict[str, int], number: int, slack_free: bool = False) -> list[tuple[str, int]]:
    """The pieces of words over single letters, by the arrays."""
    alphabet = sorted({c for word in words for c in word})
    flat = [alphabet.index(c) for word in words for c in word]
    offsets = np.cumsum([0, *map(len, words)])
    given = Words(np.array(flat, dtype=np.int32), offsets, np.array(list(words.values())))
    none = np.zeros(0, dtype=np.int64)
    rules = Rules(
        list(alphabet), len(alphabet), none, none, False, min_frequency=2, allowed=lambda piece: True
    )
    learned = learn(given, rules, number)
    return list(zip(learned.pieces, learned.frequencies, strict=True))


def test_the_best_pair_first() -> None:
    assert learn_from({"aab": 10, "ab": 5, "cd": 3}, 2) == [("ab", 15), ("aab", 10)]


def test_equal_letters_are_merged_from_the_left() -> None:
    assert learn_from({"aaaa": 4}, 3) == [("aa", 8), ("aaaa", 4)]


def test_each_piece_is_two_that_were_there(byte_level: Path, sentencepiece_bpe: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "zh.jsonl", makers.CHINESE)
    for directory in (byte_level, sentencepiece_bpe):
        output = tmp_path / f"{directory.name}.jsonl"
        learn_pieces(LearnPiecesOptions(tokenizer=directory, data=[corpus], output=output, num_pieces=60))
        known = set(load(directory).token_bytes())
        for line in read(output):
            raw = (
                bytes.fromhex(str(line["bytes"]))
                if "bytes" in line
                else str(line["piece"]).replace("▁", " ").encode()
            )
            parts = [raw[:i] in known and raw[i:] in known for i in range(1, len(raw))]
            character = "piece" in line and len(str(line["piece"])) == 1 and directory == sentencepiece_bpe
            assert any(parts) or character, line
            assert raw not in known
            known.add(raw)


def test_script_length_and_frequency(byte_level: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "mixed.jsonl", [*makers.CHINESE, *makers.ENGLISH, "罕见"])
    output = tmp_path / "pieces.jsonl"
    learn_pieces(
        LearnPiecesOptions(
            tokenizer=byte_level,
            data=[corpus],
            output=output,
            num_pieces=500,
            script="Han",
            max_piece_length=2,
            min_frequency=3,
        )
    )
    texts = [str(line["piece"]) for line in read(output) if "piece" in line]
    assert "我们" in texts
    assert all(0x4E00 <= ord(c) <= 0x9FFF for text in texts for c in text)
    assert max(map(len, texts)) == 2
    assert "罕" not in texts
    assert all(int(str(line["frequency"])) >= 3 for line in read(output))


def test_compressed_text_and_source_are_read(byte_level: Path, tmp_path: Path) -> None:
    texts = tmp_path / "in"
    texts.mkdir()
    with gzip.open(texts / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"source": "问", "target": "答答"}) + "\n")
    (texts / "b.txt").write_text("问答\n")
    (texts / "c.jsonl").write_text(json.dumps({"text": "问答"}) + "\n")
    finished = learn_pieces(
        LearnPiecesOptions(
            tokenizer=byte_level,
            data=[texts],
            output=tmp_path / "out" / "pieces.jsonl",
            num_pieces=10,
            min_frequency=2,
        )
    )
    assert finished.manifest.metrics["documents"] == 3
    assert {"piece": "问答", "frequency": 3} in read(finished.output)


def test_what_cannot_be_learned_from_is_said(byte_level: Path, tmp_path: Path) -> None:
    good = write_corpus(tmp_path / "en.jsonl", makers.ENGLISH)
    with pytest.raises(UserError, match="no text in the script Han"):
        learn_pieces(
            LearnPiecesOptions(
                tokenizer=byte_level, data=[good], output=tmp_path / "o", num_pieces=5, script="Han"
            )
        )
    with pytest.raises(UserError, match="not a Unicode script"):
        learn_pieces(
            LearnPiecesOptions(
                tokenizer=byte_level, data=[good], output=tmp_path / "o", num_pieces=5, script="Klingon"
            )
        )
    with pytest.raises(UserError, match="does not exist"):
        learn_pieces(
            LearnPiecesOptions(
                tokenizer=byte_level, data=[tmp_path / "nowhere"], output=tmp_path / "o", num_pieces=5
            )
        )
    for content, match in (
        ('{"target": "a"}\n{"target"\n', r"bad\.jsonl, line 2: broken JSON"),
        ('{"body": "a"}\n', r"bad\.jsonl, line 1: no 'target' or 'text'"),
        ("[1]\n", r"bad\.jsonl, line 1: not a JSON object"),
    ):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(UserError, match=match):
            learn_pieces(
                LearnPiecesOptions(
                    tokenizer=byte_level, data=[tmp_path / "bad.jsonl"], output=tmp_path / "o", num_pieces=5
                )
            )
    (tmp_path / "bad.jsonl").write_bytes(b'{"target": "\xff"}\n')
    with pytest.raises(UserError, match=r"line 1: invalid UTF-8"):
        learn_pieces(
            LearnPiecesOptions(
                tokenizer=byte_level, data=[tmp_path / "bad.jsonl"], output=tmp_path / "o", num_pieces=5
            )
        )
    assert not (tmp_path / "o").exists()
