"""Bits per byte: every token scored once, the same for any batch, and equal to the plain definition."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmforge.evaluate.bits import measure, windows
from llmforge.evaluate.models import load_model
from llmforge.evaluate.texts import Corpus

DOCUMENTS = ["the cat sat", "一只猫坐在垫子上。", "x", "the rat ate the hat " * 30, "<|end|> is text here"]


def ignore(*_: object, **__: object) -> None:
    pass


@given(st.integers(1, 400), st.integers(4, 60), st.integers(1, 3))
def test_windows_score_every_position_but_the_given_ones_exactly_once(length, max_length, given):
    seen = []
    for window in windows(np.arange(length), max_length, given):
        assert len(window.ids) <= max_length
        assert 1 <= window.first < len(window.ids)
        assert window.first >= max_length // 2 or window.ids[0] == 0
        seen.extend(window.ids[window.first :])
    assert seen == list(range(given, length))


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model)


def test_it_is_the_negative_log2_likelihood_over_utf8_bytes(loaded):
    corpus = Corpus("mixed", DOCUMENTS)
    bits = 0.0
    for document in DOCUMENTS:
        ids = [loaded.tokenizer.eos_id, *loaded.tokenizer.encode([document])[0].tolist()]
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([ids[:200]])).logits[0, :, : loaded.tokenizer.size]
        predicted = logits.double().log_softmax(-1)
        bits -= sum(
            predicted[i, after].item() for i, (_, after) in enumerate(itertools.pairwise(ids[:200]))
        ) / math.log(2)
    result = measure(loaded, corpus, 256, 512, ignore)
    assert result.bytes == sum(len(d.encode()) for d in DOCUMENTS)
    assert result.documents == len(DOCUMENTS)
    assert result.document_bytes == [len(d.encode()) for d in DOCUMENTS]
    alone = [measure(loaded, Corpus("one", [d]), 256, 512, ignore) for d in DOCUMENTS]
    assert result.document_bits == pytest.approx([one.bits_per_byte * one.bytes for one in alone], rel=1e-5)
    assert result.bits_per_byte == pytest.approx(bits / result.bytes, rel=1e-5)


def test_neither_batching_nor_the_order_of_documents_changes_it(loaded):
    results = [
        measure(loaded, Corpus("mixed", documents), 32, batch_tokens, ignore).bits_per_byte
        for documents in (DOCUMENTS, DOCUMENTS[::-1])
        for batch_tokens in (2, 100, 10_000)
    ]
    assert results == pytest.approx([results[0]] * len(results), rel=1e-5)


def test_rows_past_the_vocabulary_take_no_probability(loaded, tiny_model):
    before = measure(loaded, Corpus("mixed", DOCUMENTS), 256, 512, ignore).bits_per_byte
    changed = load_model(tiny_model)
    with torch.no_grad():
        changed.model.get_input_embeddings().weight[changed.tokenizer.size :] = 100.0
    assert measure(changed, Corpus("mixed", DOCUMENTS), 256, 512, ignore).bits_per_byte == before


def test_a_better_model_needs_fewer_bits(loaded, tiny_model):
    trained = load_model(tiny_model)
    ids = torch.tensor([[trained.tokenizer.eos_id, *trained.tokenizer.encode([DOCUMENTS[3]])[0].tolist()]])
    optimizer = torch.optim.AdamW(trained.model.parameters(), lr=1e-2)
    for _ in range(10):
        trained.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    corpus = Corpus("rat", [DOCUMENTS[3]])
    assert (
        measure(trained, corpus, 256, 512, ignore).bits_per_byte
        < measure(loaded, corpus, 256, 512, ignore).bits_per_byte / 2
    )
