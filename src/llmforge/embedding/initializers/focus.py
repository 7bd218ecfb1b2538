"""New rows from old tokens that are used alike."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmforge.embedding.initializers.base import InitContext, Initializer

if TYPE_CHECKING:
    import numpy as np

    from llmforge.corpus import Reader
    from llmforge.embedding.rows import Int64, Mixture, NewRows
    from llmforge.tokenizer import Tokenizer
    from llmforge.weights.floats import Float32

MAX_CHARACTERS = 20_000_000
WINDOW = 5
DIMENSIONS = 128
MIN_COUNT = 3
CANDIDATES = 512
BLOCK = 512


class Focus(Initializer):
    text = "a weighted sum of the old tokens used most similarly in --data"
    reads_data = True

    def make(self, context: InitContext, roles: Sequence[str]) -> "Mapping[str, NewRows]":
        found = focus(context.source, context.target, context.reader(), context.options.seed)
        return {role: context.mixed(role, found) for role in roles}


def focus(source: "Tokenizer", target: "Tokenizer", corpus: "Reader", seed: int) -> "Mixture":
    """`focus`: a new row is a convex combination of the old tokens most like it in an auxiliary embedding.

        e(t) = sum_s a_s e(s),   a = sparsemax(cos(x(t), x(s)) over the old tokens s)

    (Dobler and de Melo, "FOCUS", arXiv 2305.14481; sparsemax: Martins and Astudillo, arXiv 1602.02068). The auxiliary
    embedding x is learned from the corpus as the target tokenizer cuts it: not fastText but the co-occurrence matrix
    within 5 tokens, as positive pointwise mutual information with contexts smoothed by the power 0.75, and torch's
    truncated SVD of it to 128 dimensions (Levy and Goldberg, "Neural Word Embedding as Implicit Matrix Factorization",
    2014): no further dependency, and the same result for the same seed. Reads at most 20 million characters. A token
    that occurs fewer than 3 times gets an empty row.
    """
    import numpy as np

    from llmforge.embedding.rows import Mixture

    vectors, counts = cooccurrence_embedding(target, corpus, seed)
    frequent = counts >= MIN_COUNT
    old = np.flatnonzero(frequent[: source.size])
    new = np.flatnonzero(frequent[source.size :])
    lists: dict[int, tuple[np.ndarray, Float32]] = {}
    for start in range(0, len(new) if len(old) else 0, BLOCK):
        block = new[start : start + BLOCK]
        similar = vectors[source.size + block] @ vectors[old].T
        for token, (chosen, weights) in zip(block.tolist(), map(sparsemax, similar), strict=True):
            lists[token] = (old[chosen].astype(np.int32), weights)
    number = target.size - source.size
    sizes = [len(lists[i][0]) if i in lists else 0 for i in range(number)]
    ordered = [lists[i] for i in sorted(lists)]
    return Mixture(
        np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        np.concatenate([ids for ids, _ in ordered] or [np.empty(0, np.int32)]),
        np.concatenate([weights for _, weights in ordered] or [np.empty(0, np.float32)]),
    )


def sparsemax(scores: "Float32") -> "tuple[np.ndarray, Float32]":
    """(positions, weights) of the Euclidean projection of `scores` onto the simplex; zero elsewhere."""
    import numpy as np

    candidates = (
        np.argpartition(-scores, CANDIDATES)[:CANDIDATES]
        if len(scores) > CANDIDATES
        else np.arange(len(scores))
    )
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    ordered = scores[candidates].astype(np.float64)
    total = np.cumsum(ordered)
    support = int(np.flatnonzero(1 + np.arange(1, len(ordered) + 1) * ordered > total)[-1]) + 1
    if support == CANDIDATES < len(scores):  # the support may be larger still: take them all
        candidates = np.argsort(-scores, kind="stable")
        ordered = scores[candidates].astype(np.float64)
        total = np.cumsum(ordered)
        support = int(np.flatnonzero(1 + np.arange(1, len(ordered) + 1) * ordered > total)[-1]) + 1
    weights = ordered[:support] - (total[support - 1] - 1) / support
    return candidates[:support], weights.astype(np.float32)


def cooccurrence_embedding(tokenizer: "Tokenizer", corpus: "Reader", seed: int) -> "tuple[Float32, Int64]":
    """(unit vectors float32 [size, 128], occurrences int64 [size]) of the tokens of `tokenizer` in the corpus."""
    import numpy as np
    import torch

    size = tokenizer.size
    counts = np.zeros(size, np.int64)
    keys, together = np.empty(0, np.int64), np.empty(0, np.int64)
    for texts in corpus.batches(MAX_CHARACTERS):
        ids, offsets = tokenizer.encode(texts)
        counts += np.bincount(ids, minlength=size)
        document = np.repeat(np.arange(len(texts)), np.diff(offsets))
        pairs = [
            (ids[:-k].astype(np.int64) * size + ids[k:])[document[:-k] == document[k:]]
            for k in range(1, WINDOW + 1)
        ]
        found, number = np.unique(np.concatenate(pairs), return_counts=True)
        keys, inverse = np.unique(np.concatenate([keys, found]), return_inverse=True)
        together = np.bincount(inverse, np.concatenate([together, number])).astype(np.int64)
    left, right = keys // size, keys % size
    rows, columns = np.concatenate([left, right]), np.concatenate([right, left])
    values = np.concatenate([together, together]).astype(np.float64)
    row_total = np.bincount(rows, values, minlength=size)
    context = row_total**0.75
    information = np.log(values * context.sum() / (row_total[rows] * context[columns]))
    positive = information > 0
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([rows[positive], columns[positive]])),
        torch.from_numpy(information[positive].astype(np.float32)),
        (size, size),
        check_invariants=False,
    ).coalesce()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        left_vectors, strengths, _ = torch.svd_lowrank(matrix, q=min(DIMENSIONS, size), niter=2)
    vectors = (left_vectors * strengths.sqrt()).numpy()
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0), counts


INITIALIZER = Focus()
