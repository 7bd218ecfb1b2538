"""The commands as a user types them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from . import makers

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_learn_then_expand(llmforge: Command, byte_level: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "zh.jsonl"
    corpus.write_text("".join(json.dumps({"target": text}) + "\n" for text in makers.CHINESE))
    pieces, target = tmp_path / "pieces.jsonl", tmp_path / "target"
    learned = llmforge(
        "learn-pieces",
        "--source_tokenizer_dir",
        byte_level,
        "--corpus",
        corpus,
        "--num-pieces",
        50,
        "--output",
        pieces,
    )
    assert "50 tokens learned" in learned.stdout
    grown = llmforge(
        "init-tokenizer",
        "--source_tokenizer_dir",
        byte_level,
        "--target_tokenizer_dir",
        target,
        "--expand_tokens_file",
        pieces,
        "--json",
    )
    manifest = json.loads(grown.stdout)
    assert manifest["outputs"]["size"] - manifest["outputs"]["source_size"] == 50
    assert manifest["metrics"]["pieces"]["closure"] == 0


def test_mistakes_are_one_sentence(llmforge: Command, byte_level: Path, tmp_path: Path) -> None:
    done = llmforge(
        "init-tokenizer",
        "--source-tokenizer-dir",
        byte_level,
        "--target-tokenizer-dir",
        tmp_path / "target",
        "--expand-tokens-file",
        tmp_path / "nowhere.jsonl",
        code=1,
    )
    assert done.stderr.startswith("error: ")
    assert "nowhere.jsonl does not exist" in done.stderr
    llmforge("learn-pieces", "--corpus", "x", code=2)
