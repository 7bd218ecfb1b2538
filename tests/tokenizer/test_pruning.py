"""Pruned tokenizers: texts without a removed token keep their tokens, whatever leaves, in every family."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmforge.embedding.prune import prune
from llmforge.embedding.prune_options import PruneOptions
from llmforge.errors import UserError
from llmforge.steps import Finished
from llmforge.tokenizer import Tokenizer, load
from llmforge.tokenizer.loading import from_definition
from llmforge.tokenizer.pruning import Renumbering, protected, pruned_definition, removal_order
from llmforge.tokenizer.verify import sentencepiece_ids

from . import makers
from .test_transformers import ask_transformers, ids_of, python  # noqa: F401

FAMILIES = ("bpe", "unigram", "bytes", "whole-words", "no-fallback")


def written(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def made(family: str, directory: Path) -> Path:
    texts = [*makers.ENGLISH, *makers.CHINESE]
    if family == "bytes":
        return makers.byte_level(directory, texts, 700)
    if family == "whole-words":
        return makers.byte_level(directory, texts, 700, added=["<tool>"], ignore_merges=True)
    if family == "no-fallback":
        return makers.sentencepiece_model(directory, "unigram", texts, byte_fallback=False, vocab_size=300)
    return makers.sentencepiece_model(directory, family, texts, user_defined_symbols=["<sep>"])


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(request.param, tmp_path_factory.mktemp(request.param) / "source")


def pruning(source: Path, output: Path, data: list[Path], keep: list[Path], number: int) -> Finished:
    texts = {"data": [str(path) for path in data], "keep_data": [str(path) for path in keep]}
    return prune(PruneOptions(tokenizer=source, output=output, num_tokens=number, **texts), data, keep)


def split(tokenizer: Tokenizer, texts: list[str]) -> list[list[str]]:
    ids, offsets = tokenizer.encode(texts)
    return [[tokenizer.pieces()[i] for i in ids[a:b]] for a, b in pairwise(offsets)]


def test_texts_without_a_removed_token_keep_their_tokens(family: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", makers.CHINESE[:5])
    keep = written(tmp_path / "keep.jsonl", makers.ENGLISH[:3])
    before = load(family)
    finished = pruning(family, tmp_path / "out", [data], [keep], 12)
    after = load(tmp_path / "out")
    assert after.size == before.size - 12
    gone = [json.loads(line) for line in (tmp_path / "out" / "pruned.jsonl").read_text().splitlines()]
    assert [before.pieces()[one["id"]] for one in gone] == [one["piece"] for one in gone]
    names = {one["piece"] for one in gone}
    assert [piece for piece in before.pieces() if piece not in names] == after.pieces()
    assert split(before, makers.ENGLISH[:3]) == split(after, makers.ENGLISH[:3])
    special = [{tokenizer.pieces()[i] for i in tokenizer.special_ids} for tokenizer in (before, after)]
    assert special[0] == special[1]
    assert finished.manifest.metrics["keep_data"]["changed"] == 0
    again = pruning(family, tmp_path / "out", [data], [keep], 12)
    assert again.skipped
    with pytest.raises(UserError, match="overwrite"):
        pruning(family, tmp_path / "out", [data, keep], [], 12)
    if after.definition.model is not None:
        theirs = sentencepiece_ids(after, makers.ENGLISH[:6])
        ours, offsets = after.encode(makers.ENGLISH[:6])
        assert [ours[a:b].tolist() for a, b in pairwise(offsets)] == theirs


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.data())
def test_any_kept_text_keeps_its_tokens(family: Path, words: st.DataObject) -> None:
    """Of the tokens that may leave, any number, in any order that frequencies may give them."""
    before = load(family)
    seed = words.draw(st.integers(0, 1000))
    counts = np.random.default_rng(seed).integers(0, 50, before.size)
    order = [number for number, _ in removal_order(before, counts, protected(before))]
    removed = order[: words.draw(st.integers(1, len(order)))]
    after = from_definition(
        pruned_definition(before.definition, before.pieces(), Renumbering.without(removed, before.size))
    )
    text = st.sampled_from([*makers.ENGLISH[:6], *makers.CHINESE[:5]])
    parts = words.draw(st.lists(text, min_size=1, max_size=3))
    begin = words.draw(st.integers(0, 20))
    documents = ["".join(parts)[begin:], *(word for part in parts for word in part.split())]
    names = {before.pieces()[i] for i in removed}
    was, now = split(before, documents), split(after, documents)
    for document, old, new in zip(documents, was, now, strict=True):
        if not names & set(old):
            assert old == new
        if before.decode(before.encode([document])[0].tolist()) == document:
            assert after.decode(after.encode([document])[0].tolist()) == document


def test_what_a_kept_token_is_merged_from_stays(tmp_path: Path) -> None:
    before = load(made("bytes", tmp_path / "source"))
    model = before.definition.json["model"]
    order = [
        number for number, _ in removal_order(before, np.zeros(before.size, np.int64), protected(before))
    ]
    place = {number: i for i, number in enumerate(order)}
    for left, right in model["merges"]:
        joined = place[model["vocab"][left + right]]
        assert all(place.get(model["vocab"][part], len(order)) > joined for part in (left, right))
    counts = np.zeros(before.size, np.int64)
    last = model["vocab"]["".join(model["merges"][-1])]
    counts[last] = 7
    uses = dict(removal_order(before, counts, protected(before)))
    for part in model["merges"][-1]:
        if model["vocab"][part] in uses:
            assert uses[model["vocab"][part]] >= 7


@pytest.mark.slow
def test_both_versions_of_transformers_give_the_ids(
    family: Path,
    python: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    data = written(tmp_path / "data.jsonl", makers.ENGLISH[:4])
    pruning(family, tmp_path / "out", [data], [], 12)
    texts = [*makers.ENGLISH[:6], *makers.CHINESE[:5], "Ünknøwn wörds"]
    (answer,) = ask_transformers(python, [tmp_path / "out"], texts, tmp_path)
    assert answer["ids"] == ids_of(load(tmp_path / "out"), texts)
