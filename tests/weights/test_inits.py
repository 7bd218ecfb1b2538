"""The strategies that learn: align, focus, donor."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmforge.corpus import Reader, ReadOptions
from llmforge.embedding.initializers.align import align
from llmforge.embedding.initializers.donor import pursue
from llmforge.embedding.initializers.focus import CANDIDATES, cooccurrence_embedding, focus, sparsemax
from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.embedding.rows import Mixture
from llmforge.errors import UsageError, UserError
from llmforge.tokenizer import load

from .conftest import NEW_SIZE, OLD_SIZE, TEXTS
from .test_grow import tensors


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"target": text}) + "\n" for text in TEXTS * 5))
    return file


def test_align_counts_overlaps(old_tokenizer: Path, new_tokenizer: Path, corpus: Path) -> None:
    source, target = load(old_tokenizer), load(new_tokenizer)
    mixture = align(source, target, Reader([corpus], ReadOptions()))
    old_bytes, new_bytes = source.token_bytes(), target.token_bytes()
    expected: dict[int, dict[int, int]] = {}
    for text in TEXTS:  # the same by a loop over every byte
        owner = [(j, i) for j, i in enumerate(source.encode([text])[0].tolist()) for _ in old_bytes[i]]
        position = 0
        for new in target.encode([text])[0].tolist():
            end = position + len(new_bytes[new])
            if new >= OLD_SIZE:
                for _, old in dict.fromkeys(owner[position:end]):
                    counts = expected.setdefault(new, {})
                    counts[old] = counts.get(old, 0) + 1
            position = end
    assert expected
    for new in range(OLD_SIZE, NEW_SIZE):
        window = slice(mixture.offsets[new - OLD_SIZE], mixture.offsets[new - OLD_SIZE + 1])
        counts = expected.get(new, {})
        found = dict(zip(mixture.ids[window].tolist(), mixture.weights[window].tolist(), strict=True))
        assert found == pytest.approx({old: n / sum(counts.values()) for old, n in counts.items()})


def test_sparsemax_is_the_projection_onto_the_simplex() -> None:
    scores = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    for some in (scores[:10], scores * 0.1, scores * 0.001):
        chosen, weights = sparsemax(some)
        assert weights.sum() == pytest.approx(1, abs=1e-4)
        assert (weights >= 0).all()
        everything = np.zeros(len(some))
        everything[chosen] = weights
        # Optimal: what is positive lies a constant below its score, and nothing else scores above that constant.
        level = (some[chosen] - weights).mean()
        np.testing.assert_allclose(some[chosen] - weights, level, atol=1e-5)
        assert (np.delete(some, chosen) <= level + 1e-5).all()
    assert len(sparsemax(scores * 0.001)[0]) > CANDIDATES


def test_focus_finds_tokens_that_are_used_alike(
    tmp_path: Path, old_tokenizer: Path, new_tokenizer: Path
) -> None:
    source, target = load(old_tokenizer), load(new_tokenizer)
    pieces = [piece.decode(errors="replace") for piece in target.token_bytes()]
    new, old = (
        next(i for i in ids if pieces[i].isascii())
        for ids in (range(OLD_SIZE, NEW_SIZE), range(260, OLD_SIZE))
    )
    generator = np.random.default_rng(1)
    words = ["中", "学", "天", "地"]
    lines = []
    for _ in range(400):  # the two stand between the same neighbors, all else anywhere
        before, after = generator.choice(words[:2]), generator.choice(words[2:])
        lines.append(before + pieces[generator.choice([new, old])] + after)
    file = tmp_path / "alike.txt"
    file.write_text("\n".join(lines))
    assert new in target.encode(lines)[0]
    vectors, counts = cooccurrence_embedding(target, Reader([file], ReadOptions(lines=True)), 0)
    assert counts[new] > 50
    mixture = focus(source, target, Reader([file], ReadOptions(lines=True)), 0)
    window = slice(mixture.offsets[new - OLD_SIZE], mixture.offsets[new - OLD_SIZE + 1])
    assert mixture.weights[window].sum() == pytest.approx(1, abs=1e-4)
    assert mixture.ids[window][mixture.weights[window].argmax()] == old
    np.testing.assert_allclose(np.linalg.norm(vectors[counts > 3], axis=1), 1, rtol=1e-4)


def test_pursuit_recovers_sparse_combinations() -> None:
    generator = np.random.default_rng(0)
    dictionary = generator.normal(size=(200, 64)).astype(np.float32)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    atoms = np.stack([generator.choice(200, 3, replace=False) for _ in range(50)])
    weights = generator.uniform(1, 2, (50, 3)).astype(np.float32)
    wanted = np.einsum("nt,ntd->nd", weights, dictionary[atoms])
    chosen, coefficients = pursue(wanted, dictionary, 6)
    assert all(len(set(row)) == 6 for row in chosen.tolist())
    np.testing.assert_allclose(np.einsum("nt,ntd->nd", coefficients, dictionary[chosen]), wanted, atol=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_donor_carries_its_combinations_over(
    tied: bool, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    source = tiny_model(tied=tied)
    resize(source, new_tokenizer, tmp_path / "donor", ResizeOptions())
    file = tmp_path / "donor" / "model.safetensors"
    values = load_file(file)
    for value in values.values():  # another model, in which each new token is twice one old token
        if value.shape[0] == 384:
            value[:] = np.random.default_rng(len(value.shape)).normal(size=value.shape)
            value[OLD_SIZE:NEW_SIZE] = 2 * value[100 : 100 + NEW_SIZE - OLD_SIZE]
    save_file(values, file, metadata={"format": "pt"})
    (tmp_path / "donor" / "llmforge.json").unlink()
    grown = resize(
        source, new_tokenizer, tmp_path / "grown", ResizeOptions(init="donor"), donor=tmp_path / "donor"
    )
    assert set(grown.manifest.metrics["new_rows_by_subtokens_instead"].values()) == {0}
    old, new = tensors(source), tensors(tmp_path / "grown")
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(new):
        expected = 2 * old[name][100 : 100 + NEW_SIZE - OLD_SIZE]
        np.testing.assert_allclose(new[name][OLD_SIZE:NEW_SIZE], expected, atol=1e-3)


@pytest.mark.parametrize("init", ["align", "focus"])
def test_what_the_corpus_lacks_comes_from_subtokens(
    init: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path, corpus: Path
) -> None:
    source = tiny_model()
    for name in ("one", "two"):
        grown = resize(source, new_tokenizer, tmp_path / name, ResizeOptions(init=init), corpus=[corpus])
    assert 0 < grown.manifest.metrics["new_rows_by_subtokens_instead"]["embedding"] < NEW_SIZE - OLD_SIZE
    assert (tmp_path / "one/model.safetensors").read_bytes() == (
        tmp_path / "two/model.safetensors"
    ).read_bytes()
    resize(source, new_tokenizer, tmp_path / "plain", ResizeOptions())
    plain, new = (tensors(tmp_path / name)["lm_head.weight"][OLD_SIZE:NEW_SIZE] for name in ("plain", "one"))
    same = np.isclose(plain, new, atol=1e-6).all(axis=1)
    # BPE training that goes on merges whole old tokens: then what `align` finds in texts is the spelling again.
    assert same.all() if init == "align" else 0 < same.sum() < len(same)
    assert np.isfinite(new).all()


def test_inputs_belong_to_their_strategy(tmp_path: Path, corpus: Path) -> None:
    for growth, given in (
        (ResizeOptions(init="align"), {}),
        (ResizeOptions(), {"corpus": [corpus]}),
        (ResizeOptions(init="donor"), {}),
        (ResizeOptions(), {"donor": tmp_path}),
    ):
        with pytest.raises(UsageError, match=r"--data|--donor"):
            resize(tmp_path, tmp_path, tmp_path / "grown", growth, **given)
    with pytest.raises(UsageError, match="--init"):
        ResizeOptions(init="other")


@pytest.mark.parametrize(
    ("line", "problem"),
    [("{", "line 2"), ('{"other": 1}', "line 2"), ('{"target": 3}', "line 2"), ("\xff", "UTF-8")],
)
def test_broken_corpora(
    line: str, problem: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_bytes(b'{"target": "text"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=problem):
        resize(tiny_model(), new_tokenizer, tmp_path / "grown", ResizeOptions(init="align"), corpus=[file])
    assert not (tmp_path / "grown").exists()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no documents? (found|with text)"):
        resize(
            tmp_path / "source",
            new_tokenizer,
            tmp_path / "grown",
            ResizeOptions(init="align"),
            corpus=[tmp_path / "empty.jsonl"],
        )


def test_mixtures() -> None:
    one = Mixture.of_lists([[3, 4], [], [5]])
    assert one.first().ids.tolist() == [3, 5]
    assert one.empty.tolist() == [1]
    filled = one.filled_from(Mixture.of_lists([[9], [7, 8], [9]]))
    assert filled.offsets.tolist() == [0, 2, 4, 5]
    assert filled.ids.tolist() == [3, 4, 7, 8, 5]
    assert filled.weights.tolist() == [0.5, 0.5, 0.5, 0.5, 1]
    usable = np.ones(10, np.bool_)
    usable[[3, 5]] = False
    left = filled.without(usable)
    assert left.ids.tolist() == [4, 7, 8]
    assert left.weights.tolist() == [1, 0.5, 0.5]
    assert left.empty.tolist() == [2]
