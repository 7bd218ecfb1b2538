"""Added tokens: gathered from all files that name them, and put into the model's vocabulary at their own ids.

`tokenizers` numbers an added token that the vocabulary lacks by the vocabulary's size, whatever id is declared: were
the vocabulary to grow, all of them would move. Behind a vocabulary without gaps both numbers are the same.
"""

from pathlib import Path
from typing import Any

from llmforge import console
from llmforge.errors import UserError
from llmforge.tokenizer.formats.config import ADDED, CONFIG, read_added, special_tokens
from llmforge.tokenizer.formats.shapes import FLAGS, check_sparse

Token = dict[str, Any]


def place_added_tokens(
    definition: dict[str, Any], config: dict[str, Any], directory: Path, file: Path
) -> None:
    """Makes `added_tokens` whole, and gives each a place in `model.vocab`; both at the ids that the files declare.

    `file` is where the vocabulary is from. Raises `UserError` where two files, or two entries, disagree about an id.
    """
    vocab = definition["model"]["vocab"]
    ids = {p: i for i, (p, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
    tokens = _gather(definition["added_tokens"], config, directory, file)
    owners = {i: piece for piece, i in ids.items()}
    size = len(ids)
    missing: list[Token] = []
    for token in tokens.values():
        content, declared = token["content"], token["id"]
        if content in ids:
            if declared not in (None, ids[content]):
                raise UserError(
                    f"{file} has {content!r} at the id {ids[content]} in its vocabulary and at {declared} as an added "
                    "token; correct one of them."
                )
            token["id"] = ids[content]
        elif declared in owners:
            raise UserError(
                f"{file}: the id {declared} belongs to both {owners[declared]!r} and the added token {content!r}; give "
                "one of them another id."
            )
        else:
            missing.append(token)
            if declared is not None:
                owners[declared] = content
    highest = max(owners, default=-1)
    for token in missing:  # transformers appends a special token that has a name and no id
        if token["id"] is None:
            highest += 1
            token["id"] = highest
    missing.sort(key=lambda token: token["id"])
    check_sparse(len(ids) + len(missing), highest, file)
    if moved := next((token for i, token in enumerate(missing) if token["id"] != size + i), None):
        console.warn(
            f"{file}: the added token {moved['content']!r} has the id {moved['id']}, after unused ids. llmforge keeps "
            f"it; transformers assigns the id {size + missing.index(moved)}."
        )
    definition["model"]["vocab"] = _with(vocab, missing)
    definition["added_tokens"] = sorted(tokens.values(), key=lambda token: token["id"])


def fill_unused(definition: dict[str, Any]) -> dict[str, Any]:
    """The `model` of `definition` with a placeholder at each unused id: transformers counts pieces, not ids.

    No text makes a placeholder: it is the product of no merge, and its brackets are in no byte-level alphabet.
    """
    model = dict(definition["model"])
    used = set(model["vocab"].values())
    unused = set(range(max(used) + 1)) - used
    model["vocab"] = {**model["vocab"], **{f"⟨unused {i}⟩": i for i in sorted(unused)}}
    return model


def _gather(listed: list[Token], config: dict[str, Any], directory: Path, file: Path) -> dict[str, Token]:
    """All added tokens by content; the id of one that is named only is None."""
    tokens: dict[str, Token] = {}
    owners: dict[int, str] = {}

    def take(token: Token, place: Path) -> None:
        known = tokens.get(token["content"])
        if known is not None and known["id"] != token["id"]:
            raise UserError(
                f"{place} gives {token['content']!r} the id {token['id']}, but it has the id {known['id']}"
                f"{f' in {file.name}' if place != file else ' before'}; correct one of them."
            )
        other = owners.setdefault(token["id"], token["content"])
        if other != token["content"]:
            raise UserError(
                f"{place} gives the id {token['id']} to {token['content']!r}, but it belongs to {other!r}; correct one of "
                "them."
            )
        # The flags of the configuration are those that transformers uses.
        tokens[token["content"]] = {**(known or {}), **token}

    for token in listed:
        take(token, file)
    for token in config["added_tokens_decoder"].values():
        take(token, directory / CONFIG)
    special = special_tokens(config)
    for content, i in read_added(directory).items():
        known = tokens.get(content)
        take(
            known if known and known["id"] == i else _token(i, content, content in special), directory / ADDED
        )
    for content in special:
        tokens.setdefault(content, _token(None, content, True))["special"] = True
    return tokens


def _token(i: int | None, content: str, special: bool) -> Token:
    return {
        "id": i,
        "content": content,
        **dict.fromkeys(FLAGS, False),
        "normalized": not special,
        "special": special,
    }


def _with(vocab: Any, missing: list[Token]) -> Any:
    if not isinstance(vocab, list):
        return {**vocab, **{token["content"]: token["id"] for token in missing}}
    contents = {token["id"]: token["content"] for token in missing}
    end = max(contents, default=-1) + 1
    return [*vocab, *([contents.get(i, f"⟨unused {i}⟩"), 0.0] for i in range(len(vocab), end))]
