"""New rows from the old tokens that lie where the new ones do in a text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmforge.embedding.initializers.base import InitContext, Initializer

if TYPE_CHECKING:
    import numpy as np

    from llmforge.corpus import Reader
    from llmforge.embedding.rows import Int64, Mixture, NewRows
    from llmforge.tokenizer import Tokenizer

MAX_CHARACTERS = 100_000_000


class Align(Initializer):
    text = "the mean of the old tokens that overlap it in --data, by frequency"
    reads_data = True

    def make(self, context: InitContext, roles: Sequence[str]) -> "Mapping[str, NewRows]":
        found = align(context.source, context.target, context.reader())
        return {role: context.mixed(role, found) for role in roles}


def align(source: "Tokenizer", target: "Tokenizer", corpus: "Reader") -> "Mixture":
    """`align`: a new row is the mean of the old tokens that cover its place in a text, weighted by their frequency.

        e(t) = sum_s c(t, s) e(s) / sum_s c(t, s)

    where c(t, s) counts how often an occurrence of t, in the corpus as the target tokenizer cuts it, overlaps one of
    s, as the source tokenizer cuts it (Yamaguchi et al., "How Can We Effectively Expand the Vocabulary of LLMs with
    0.01GB of Target Language Text?", arXiv 2406.11477). Unlike the spelling of a piece alone this sees old tokens that
    reach over its ends. Reads at most 100 million characters. A token that the corpus lacks gets an empty row.
    """
    import numpy as np

    old_bytes, new_bytes = (_lengths(tokenizer) for tokenizer in (source, target))
    keys = np.empty(0, np.int64)
    counts = np.empty(0, np.int64)
    for texts in corpus.batches(MAX_CHARACTERS):
        pairs = _overlaps(source, target, texts, old_bytes, new_bytes)
        keys, inverse = np.unique(np.concatenate([keys, pairs]), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([counts, np.ones(len(pairs), np.int64)])).astype(
            np.int64
        )
    return mixture_of_counts(keys, counts, source.size, target.size)


def mixture_of_counts(keys: "Int64", counts: "Int64", old_size: int, new_size: int) -> "Mixture":
    """Weights that are each new token's share of `counts`; keys, ascending, are (new id * old_size + old id)."""
    import numpy as np

    from llmforge.embedding.rows import Mixture

    new, old = keys // old_size, keys % old_size
    new = new - old_size
    number = new_size - old_size
    offsets = np.concatenate([[0], np.cumsum(np.bincount(new, minlength=number))])
    totals = np.bincount(new, counts, minlength=number)
    return Mixture(offsets, old.astype(np.int32), (counts / totals[new]).astype(np.float32))


def _lengths(tokenizer: "Tokenizer") -> "Int64":
    """By id, the bytes of text that a token stands for."""
    import numpy as np

    return np.array([len(text) for text in tokenizer.token_bytes()], np.int64)


def _overlaps(
    source: "Tokenizer", target: "Tokenizer", texts: list[str], old_bytes: "Int64", new_bytes: "Int64"
) -> "Int64":
    """One key (new id * source.size + old id) for each overlap of a new token with an old one."""
    import numpy as np

    old_ids, old_offsets = source.encode(texts)
    new_ids, new_offsets = target.encode(texts)
    # Positions run on from text to text. A text whose bytes the tokenizers count differently (an unknown character)
    # would shift all that follow: it is left out.
    old_ids, new_ids = _in_step(old_ids, old_offsets, new_ids, new_offsets, old_bytes, new_bytes)
    old_ends, new_ends = np.cumsum(old_bytes[old_ids]), np.cumsum(new_bytes[new_ids])
    old_starts = old_ends - old_bytes[old_ids]
    where = np.flatnonzero(new_ids >= source.size)
    starts, ends = new_ends[where] - new_bytes[new_ids[where]], new_ends[where]
    first = np.searchsorted(old_ends, starts, "right")
    count = np.maximum(np.searchsorted(old_starts, ends, "left") - first, 0)
    position = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    overlapping = old_ids[np.repeat(first, count) + position].astype(np.int64)
    keys: Int64 = np.repeat(new_ids[where].astype(np.int64), count) * source.size + overlapping
    return keys


def _in_step(
    old_ids: "np.ndarray",
    old_offsets: "Int64",
    new_ids: "np.ndarray",
    new_offsets: "Int64",
    old_bytes: "Int64",
    new_bytes: "Int64",
) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    old_sizes, new_sizes = (
        np.diff(np.concatenate([[0], np.cumsum(sizes[ids])])[offsets])
        for ids, offsets, sizes in ((old_ids, old_offsets, old_bytes), (new_ids, new_offsets, new_bytes))
    )
    good = old_sizes == new_sizes
    keep_old, keep_new = (np.repeat(good, np.diff(offsets)) for offsets in (old_offsets, new_offsets))
    return old_ids[keep_old], new_ids[keep_new]


INITIALIZER = Align()
