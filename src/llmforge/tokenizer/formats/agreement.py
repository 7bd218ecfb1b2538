"""Whether files of one directory that say the same thing twice say the same thing."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.tokenizer.formats import sentencepiece_model as spm
from llmforge.tokenizer.formats import tiktoken_ranks


def rename_pieces(proto: Any, added: Iterable[dict[str, Any]], directory: Path) -> None:
    """Gives pieces of `proto` that stand for nothing in a text the names that added tokens have at their ids.

    Chat models take a reserved piece (`<unused0>`, `<0x00>` never) for a token of their own and say so in their
    configuration only.
    """
    names = {piece.piece for piece in proto.pieces}
    for token in added:
        i, content = token["id"], token["content"]
        if i < len(proto.pieces) and content not in names:
            piece = proto.pieces[i]
            if piece.type in (spm.CONTROL, spm.USER_DEFINED, spm.UNUSED):
                piece.piece, piece.score = content, 0.0
                piece.type = spm.CONTROL if token["special"] else spm.USER_DEFINED


def check_sentencepiece(definition: dict[str, Any], proto: Any, directory: Path) -> None:
    """Refuses a `tokenizer.json` whose pieces are not those of the `tokenizer.model` beside it."""
    model = definition["model"]
    unigram = proto.trainer_spec.model_type == spm.UNIGRAM
    if unigram != (model["type"] == "Unigram"):
        kinds = ("BPE", "unigram") if unigram else ("unigram", "BPE")
        raise _disagree(directory, f"the first is a {kinds[0]} tokenizer and the second a {kinds[1]} one")
    vocab = model["vocab"]
    by_id = dict(enumerate(p for p, _ in vocab)) if unigram else {i: piece for piece, i in vocab.items()}
    added = {token["id"] for token in definition["added_tokens"]}
    for i, piece in enumerate(proto.pieces):
        found = by_id.get(i)
        if found == piece.piece or (piece.type == spm.BYTE and found == _byte(piece.piece)):
            continue
        raise _disagree(
            directory, f"the id {i} is {_spell(found)} in the first and {piece.piece!r} in the second"
        )
    size = len(proto.pieces)
    if surplus := next((i for i in sorted(by_id) if i >= size and i not in added), None):
        raise _disagree(
            directory, f"the id {surplus} is {by_id[surplus]!r} in the first and no piece in the second"
        )


def check_ranks(definition: dict[str, Any], path: Path) -> None:
    """Refuses a `tokenizer.json` whose pieces are not the ranks in the `tokenizer.model` beside it."""
    vocab = definition["model"]["vocab"]
    for piece, rank in tiktoken_ranks.spelled_ranks(path).items():
        if isinstance(vocab, list) or vocab.get(piece) != rank:
            found = (
                None if isinstance(vocab, list) else next((p for p, i in vocab.items() if i == rank), None)
            )
            raise _disagree(
                path.parent, f"the id {rank} is {_spell(found)} in the first and {piece!r} in the second"
            )


def _byte(piece: str) -> str | None:
    """The character that `<0x09>` stands for: some conversions (Gemma's) have it in its place."""
    return chr(int(piece[3:5], 16)) if len(piece) == 6 and piece.startswith("<0x") else None


def _spell(piece: str | None) -> str:
    return "no piece" if piece is None else repr(piece)


def _disagree(directory: Path, how: str) -> UserError:
    return UserError(
        f"{directory}: tokenizer.json and tokenizer.model disagree: {how}. Remove the one that is out of date."
    )
