"""`compare-tokenizers`: figures that can be checked by hand, in every format."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmforge.corpus import ReadOptions
from llmforge.errors import UserError
from llmforge.tokenizer import load
from llmforge.tokenizer.compare import compare, labeled, short_names

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, list[Path]]:
    (tmp_path / "en.txt").write_text("The cat sat.\nThe old man.\n")
    (tmp_path / "zh.jsonl").write_text('{"text": "我们"}\n{"source": "我", "target": "们的"}\n')
    return {"en": [tmp_path / "en.txt"], "zh": [tmp_path / "zh.jsonl"]}


def test_figures(byte_level: Path, sentencepiece_bpe: Path, corpora: dict[str, list[Path]]) -> None:
    rows = compare([byte_level, sentencepiece_bpe], corpora, reading=ReadOptions(lines=True))
    assert [(row.tokenizer, row.label) for row in rows] == [
        (name, label) for name in ("bytes", "bpe") for label in ("en", "zh")
    ]
    zh = rows[1]
    assert (zh.samples, zh.characters, zh.tokens, zh.vocabulary) == (2, 5, 15, load(byte_level).size)
    assert (zh.compression, zh.tokens_per_byte, zh.mean_tokens) == (3.0, 1.0, 7.5)
    en = rows[2]
    assert en.tokens == sum(
        len(load(sentencepiece_bpe).encode([t])[0]) for t in ("The cat sat.", "The old man.")
    )
    assert compare([byte_level], corpora, max_samples=1)[1].samples == 1


def test_every_format(
    llmforge: Command, byte_level: Path, corpora: dict[str, list[Path]], tmp_path: Path
) -> None:
    outputs = [tmp_path / f"out.{suffix}" for suffix in ("md", "json", "html")]
    given = [f"--output={path}" for path in outputs]
    pairs = [f"{label}={paths[0]}" for label, paths in corpora.items()]
    done = llmforge("compare-tokenizers", byte_level, "--corpus", *pairs, *given)
    assert "character" in done.stdout
    assert "…" not in done.stdout
    assert "3.0000" in done.stdout
    markdown, raw, page = (path.read_text() for path in outputs)
    assert markdown.splitlines()[3] == f"| bytes | {load(byte_level).size} | zh | 2 | 3.0000 | 1.0000 | 7.5 |"
    assert json.loads(raw)["tokenizers"][1]["tokens"] == 15
    assert page.count("<rect") == 2
    assert "<script" not in page
    done = llmforge("compare-tokenizers", byte_level, "--corpus", *pairs, "--json")
    assert json.loads(done.stdout)[1]["compression"] == 3.0
    llmforge("compare-tokenizers", byte_level, "--corpus", *pairs, "--output", "x.pdf", code=2)


def test_labels_and_names(tmp_path: Path) -> None:
    (tmp_path / "a=b.txt").write_text("x")
    assert labeled([str(tmp_path / "a=b.txt"), "zh=/x", "zh=/y", "/data/news.jsonl.gz"]) == {
        "a=b": [tmp_path / "a=b.txt"],
        "zh": [Path("/x"), Path("/y")],
        "news": [Path("/data/news.jsonl.gz")],
    }
    assert short_names([Path("/a/t"), Path("/b/t"), Path("/a/u")]) == ["a/t", "b/t", "a/u"]
    with pytest.raises(UserError, match="does not exist"):
        compare([], {"x": [tmp_path / "nowhere"]})
