"""`learn-pieces`: pieces in an order in which they can be merged."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_the_curve_has_the_tokens_that_fewer_new_tokens_leave(byte_level: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "zh.jsonl", makers.CHINESE)

    def learned(number: int) -> dict[str, Any]:
        options = LearnPiecesOptions(
            tokenizer=byte_level, data=[corpus], output=tmp_path / f"{number}.jsonl", num_pieces=number
        )
        return learn_pieces(options).manifest.metrics

    most = learned(80)
    assert list(most["curve"][-1]) == [80, most["tokens_after"]]
    points = dict(reversed(most["curve"]))  # the first round of each number
    for number, tokens in list(points.items())[:: max(1, len(points) // 5)]:
        assert learned(number)["tokens_after"] == tokens


def test_the_curve_of_a_command(byte_level: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "zh.jsonl", makers.CHINESE)
    command = [sys.executable, "-m", "llmforge", "learn-pieces", "--tokenizer", str(byte_level), "--data"]
    command += [str(corpus), "--num-pieces", "150", "--output", str(tmp_path / "pieces.jsonl"), "--curve"]

    def table(*more: str) -> tuple[list[list[str]], str]:
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
        )
        assert done.returncode == 0, done.stderr
        lines = [line.strip("│").split("│") for line in done.stdout.splitlines() if line.startswith("│")]
        return [[cell.strip() for cell in line] for line in lines], done.stdout

    rows, text = table()
    most = len((tmp_path / "pieces.jsonl").read_text().splitlines())
    assert [rows[0][0], rows[-1][0]] == ["0", str(most)]
    assert "Give --model" in text
    (tmp_path / "model").mkdir()
    config = {"model_type": "llama", "vocab_size": 1000, "hidden_size": 16, "intermediate_size": 32}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    rows, text = table("--model", str(tmp_path / "model"))
    # Attention 4 x 16 x 16, MLP 3 x 16 x 32; the head is much larger, so more of it costs more than it saves.
    layers = 4 * 16 * 16 + 3 * 16 * 32
    tokens = [float(row[1]) for row in rows]
    cost = (layers + (1000 + most) * 16 + 32) * tokens[-1] / ((layers + 1000 * 16 + 32) * tokens[0])
    assert float(rows[-1][3].removesuffix(" x")) == pytest.approx(cost, abs=2e-3)
    assert rows[-1][5] == "0.0 M"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--word-list", "words.txt", "--curve"], "--curve counts tokens of texts"),
        (["--data", "zh.jsonl", "--model", "model"], "--model is for --curve"),
    ],
)
def test_a_curve_that_cannot_be(byte_level: Path, tmp_path: Path, more: list[str], message: str) -> None:
    command = [sys.executable, "-m", "llmforge", "learn-pieces", "--tokenizer", str(byte_level)]
    done = subprocess.run(
        [*command, "--num-pieces", "5", "--output", "p.jsonl", *more],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert message in done.stderr
