"""The old tokens that spell a new piece."""

from llmforge.embedding.rows import Mixture
from llmforge.tokenizer import Tokenizer


def subtoken_mean(source: Tokenizer, target: Tokenizer) -> Mixture:
    """`subtoken-mean`: a new row is the mean of the rows of the old tokens that spell its piece.

        e(t) = 1/n * sum_i e(s_i),  where s_1 ... s_n = encode_source(t)

    The way of Colossal-LLaMA-2, and of vocabulary expansion in general (Hewitt 2021 for the mean of all rows;
    arXiv 2407.05841 compares). The piece is handed to the model of the source tokenizer as it is, behind its
    normalizer and pre-tokenizer: encoded as a text it would get a dummy prefix that stands for a space it
    lacks, whose row would be in every mean.
    """
    return Mixture.of_lists(spellings(source, target))


def spellings(source: Tokenizer, target: Tokenizer) -> list[list[int]]:
    """For each id from `source.size` on, the old ids that spell its piece; empty where none do."""
    model = source.backend.model
    unknown = getattr(model, "unk_token", None)
    unknown_id = source.backend.token_to_id(unknown) if isinstance(unknown, str) else None
    pieces = target.pieces()
    return [
        [t.id for t in model.tokenize(piece) if t.id != unknown_id and t.id < source.size] if piece else []
        for piece in pieces[source.size : target.size]
    ]
