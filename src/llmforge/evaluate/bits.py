"""Bits per byte: the negative log2-likelihood of a text, over its UTF-8 bytes.

It can be compared across vocabularies, which a loss per token cannot.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from llmforge.evaluate.models import Loaded
from llmforge.evaluate.texts import Corpus


@dataclass(frozen=True)
class Bits:
    """What one model needs for one corpus: bits per UTF-8 byte, tokens per character, and the counts behind them.

    `document_bits` and `document_bytes` are those of each document, in order.
    """

    bits_per_byte: float
    tokens_per_character: float
    tokens: int
    characters: int
    bytes: int
    documents: int
    document_bits: list[float]
    document_bytes: list[int]


@dataclass(frozen=True)
class Window:
    """One input of the model: `ids` are shown, and those from position `first` on are scored. `document` is the number
    of the document that it is of.
    """

    ids: np.ndarray
    first: int
    document: int = 0


def measure(
    loaded: Loaded, corpus: Corpus, max_length: int, batch_tokens: int, advance: Callable[..., None]
) -> Bits:
    """Bits per byte of every document of `corpus`.

    A document is what the tokenizer puts before it (bos, and where that is nothing, eos) and its tokens; every token of it is scored exactly once. One longer
    than `max_length` continues in windows that overlap by half, so that a scored token has at least max_length / 2 - 1
    tokens before it. Batches hold at most `batch_tokens` tokens, padding included, and at least one window.
    """
    start_ids = loaded.start_ids
    flat, offsets = loaded.tokenizer.encode(corpus.documents)
    all_windows = [
        window
        for number, (start, end) in enumerate(itertools.pairwise(offsets))
        for window in windows(
            np.concatenate((start_ids, flat[start:end])), max_length, len(start_ids), number
        )
    ]
    all_windows.sort(key=lambda window: len(window.ids), reverse=True)
    nats = np.zeros(len(corpus.documents))
    for batch in _batches(all_windows, batch_tokens):
        np.add.at(nats, [window.document for window in batch], _nats(loaded, batch))
        advance(sum(len(window.ids) - window.first for window in batch))
    return Bits(
        bits_per_byte=float(nats.sum()) / math.log(2) / corpus.nbytes,
        tokens_per_character=len(flat) / corpus.characters,
        tokens=len(flat),
        characters=corpus.characters,
        bytes=corpus.nbytes,
        documents=len(corpus.documents),
        document_bits=(nats / math.log(2)).tolist(),
        document_bytes=[len(document.encode()) for document in corpus.documents],
    )


def windows(ids: np.ndarray, max_length: int, given: int = 1, document: int = 0) -> Iterator[Window]:
    """Windows over `ids` of `document`, of at most `max_length`, in which every position but the first `given` is scored exactly once."""
    scored, start = given, 0
    while scored < len(ids):
        end = min(len(ids), start + max_length)
        yield Window(ids[start:end], scored - start, document)
        scored = end
        start = end - max_length // 2


def _batches(ordered: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    position = 0
    while position < len(ordered):  # longest first, so the first window of a batch gives its width
        count = max(1, batch_tokens // len(ordered[position].ids))
        yield ordered[position : position + count]
        position += count


@torch.inference_mode()
def _nats(loaded: Loaded, batch: list[Window]) -> np.ndarray:
    """The negative log-likelihood of what is scored of each window, float64."""
    width = len(batch[0].ids)
    ids = torch.full((len(batch), width), loaded.start_ids[0], dtype=torch.int64)
    scored = torch.zeros((len(batch), width), dtype=torch.bool)
    for row, window in enumerate(batch):
        ids[row, : len(window.ids)] = torch.from_numpy(window.ids.astype(np.int64))
        scored[row, window.first : len(window.ids)] = True
    # Padding is on the right and attention is causal, so no scored token sees it and no mask is needed.
    ids, scored = ids.to(loaded.device), scored.to(loaded.device)
    logits = loaded.model(input_ids=ids, use_cache=False).logits[:, :-1][scored[:, 1:]]
    # Rows past the vocabulary are padding of the matrix: no token can have those ids.
    logits = logits[:, : loaded.tokenizer.size].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][scored[:, 1:]], reduction="none")
    rows = scored[:, 1:].nonzero()[:, 0]
    return torch.bincount(rows, losses.double(), minlength=len(batch)).cpu().numpy()
