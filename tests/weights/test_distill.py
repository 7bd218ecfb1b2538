"""Rows learned from the source model itself: distill, linear, and a head of its own for a tied model."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.corpus import Reader, ReadOptions
from llmforge.embedding.distillation import (
    both_sides,
    inputs,
    linear,
    outputs,
    snippets,
    source_model,
    state,
)
from llmforge.embedding.distillation.source_model import SourceModel
from llmforge.embedding.initializers.distill import DistillOptions
from llmforge.embedding.options import InitializerOptions, ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.errors import UsageError, UserError
from llmforge.steps import read_manifest
from llmforge.tokenizer import load
from llmforge.weights.modules import PLAIN

from .conftest import NEW_SIZE, OLD_SIZE, TEXTS
from .test_grow import tensors

NEW = NEW_SIZE - OLD_SIZE


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    generator = np.random.default_rng(0)
    texts = [" ".join(TEXTS[i] for i in generator.permutation(len(TEXTS))) for _ in range(6)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def distilling(growth: dict[str, Any] | None = None, **options: Any) -> ResizeOptions:
    small: dict[str, Any] = {"distill_tokens": 300, "distill_epochs": 2, "distill_layers": 1}
    methods = InitializerOptions(distill=DistillOptions(**{**small, **options}))
    return ResizeOptions(init="distill", methods=methods, **(growth or {}))


@pytest.mark.parametrize(
    ("architecture", "tied", "dtype", "untie"),
    [
        ("llama", False, "float32", False),
        ("llama", True, "bfloat16", False),
        ("gpt2", True, "float16", False),
        ("gemma", True, "float32", True),
        ("phi", False, "bfloat16", False),
    ],
)
def test_distilling_moves_new_rows_alone(
    architecture: str,
    tied: bool,
    dtype: str,
    untie: bool,
    tiny_model: Callable[..., Path],
    new_tokenizer: Path,
    corpus: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = tiny_model(architecture, tied=tied, dtype=dtype)
    resize(source, new_tokenizer, tmp_path / "means", ResizeOptions(untie=untie))
    resize(source, new_tokenizer, tmp_path / "grown", distilling({"untie": untie}), corpus=[corpus])
    assert ("is tied: one matrix" in capfd.readouterr().err) is (tied and not untie)
    old, means, grown = (tensors(path) for path in (source, tmp_path / "means", tmp_path / "grown"))
    assert grown.keys() == means.keys()
    changed = 0
    for name, value in grown.items():
        if name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight")):
            was = old.get(name, next(one for one in old.values() if one.shape[1:] == value.shape[1:]))
            np.testing.assert_array_equal(value[:OLD_SIZE], was[:OLD_SIZE])
            assert np.isfinite(value[OLD_SIZE:NEW_SIZE]).all()
            assert (value[OLD_SIZE:NEW_SIZE] != means[name][OLD_SIZE:NEW_SIZE]).any()
            np.testing.assert_array_equal(value[NEW_SIZE:], means[name][NEW_SIZE:])
            changed += 1
        else:
            np.testing.assert_array_equal(value, means[name])
    assert changed == (1 if tied and not untie else 2)


def test_hidden_states_come_nearer_and_nothing_else_gets_a_gradient(
    tiny_model: Callable[..., Path], old_tokenizer: Path, new_tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    import torch

    source, target = load(tiny_model()), load(new_tokenizer)
    model = SourceModel(source, False)
    before = {name: value.clone() for name, value in model.causal.state_dict().items()}
    texts = snippets.read_texts(source, target, Reader([corpus], ReadOptions()), 300)
    chosen = snippets.around_new_tokens(snippets.cut(texts, 24), OLD_SIZE)
    batches = snippets.in_batches(chosen, model.start_ids, OLD_SIZE, 64, np.random.default_rng(0))
    wanted = inputs.Wanted(model, batches, 1, tmp_path)
    rows = torch.zeros(NEW, model.width)
    trained, distances = inputs.distill_inputs(
        model, batches, wanted, rows, inputs.InputSettings(1, 0.05, 6, 0), tmp_path
    )
    assert distances[-1] < 0.6 * distances[0]
    assert all(parameter.grad is None for parameter in model.causal.parameters())
    for name, value in model.causal.state_dict().items():
        assert torch.equal(value, before[name])
    # Once more by the model of transformers: the states of a later batch, source against grown.
    batch = batches[-1]
    enlarged = torch.cat([model.embedding.weight, trained])[torch.from_numpy(batch.new_ids)]
    theirs = model.causal.base_model(inputs_embeds=enlarged, output_hidden_states=True).hidden_states[1]
    ours = model.states(batch.new_ids, 1, trained)
    torch.testing.assert_close(ours, theirs)
    # What a row changes is what its sensitivity says, to the first order of the square.
    curvature = inputs.sensitivity(model, batches * 40, trained, wanted.scale(), 1, 0)
    shift = 1e-3 * torch.randn(NEW, model.width, generator=torch.Generator().manual_seed(0))
    total = places = 0.0
    for one in batches:
        moved = model.states(one.new_ids, 1, trained + shift) - model.states(one.new_ids, 1, trained)
        total += float((moved[one.row, one.new_column].square() * wanted.scale()).sum()) / model.width
        new = one.new_ids[one.new_ids >= OLD_SIZE] - OLD_SIZE
        places += float(((shift[new] @ curvature) * shift[new]).sum())
    assert places == pytest.approx(total, rel=0.5)


def test_snippets_are_the_same_text_in_both_tokenizers(
    old_tokenizer: Path, new_tokenizer: Path, corpus: Path
) -> None:
    source, target = load(old_tokenizer), load(new_tokenizer)
    texts = snippets.read_texts(source, target, Reader([corpus], ReadOptions()), 1000)
    old_bytes, new_bytes = source.token_bytes(), target.token_bytes()
    whole = snippets.cut(texts, 10)
    assert whole.lengths.max() == 10
    for some in (whole, snippets.around_new_tokens(snippets.cut(texts, 40), OLD_SIZE)):
        for batch in snippets.in_batches(some, (0,), OLD_SIZE, 100, np.random.default_rng(0)):
            assert batch.new_ids.size <= 100 + 100 * len(batch.lengths)
            for row, new, old in zip(batch.row, batch.new_column, batch.old_column, strict=True):
                cut_old = b"".join(old_bytes[i] for i in batch.old_ids[row, 1 : old + 1])
                cut_new = b"".join(new_bytes[i] for i in batch.new_ids[row, 1 : new + 1])
                assert cut_old == cut_new
    assert sum(whole.lengths) > 0.9 * len(texts.new_ids)


def test_even_snippets_show_rare_tokens(old_tokenizer: Path, new_tokenizer: Path, tmp_path: Path) -> None:
    source, target = load(old_tokenizer), load(new_tokenizer)
    file = tmp_path / "uneven.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [TEXTS[0]] * 50 + [TEXTS[1]]))
    texts = snippets.read_texts(source, target, Reader([file], ReadOptions()), 1000)
    chosen = snippets.choose_even(snippets.cut(texts, 12), OLD_SIZE, NEW_SIZE, 120)
    assert 120 <= chosen.lengths.sum() < 150
    shown = np.concatenate([texts.new_ids[a:b] for a, b in zip(chosen.starts, chosen.stops, strict=True)])
    rare = target.encode([TEXTS[1]])[0]
    assert np.isin(rare[rare >= OLD_SIZE], shown).all()


def test_the_head_is_fitted_to_what_the_model_itself_would_lose(
    tiny_model: Callable[..., Path], new_tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    import torch

    directory = tiny_model()
    source, target = load(directory), load(new_tokenizer)
    model = SourceModel(source, False)
    texts = snippets.read_texts(source, target, Reader([corpus], ReadOptions()), 1000)
    batches = snippets.in_batches(
        snippets.cut(texts, 40), model.start_ids, OLD_SIZE, 200, np.random.default_rng(0)
    )
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(NEW, model.width, generator=generator) * 0.2
    states = outputs.collect(model, batches, rows, PLAIN, tmp_path)
    head = torch.randn(NEW, model.width, generator=generator) * 0.2
    bias = torch.zeros(NEW)
    ours = outputs.losses(states, head, bias, PLAIN)
    position = 0
    for batch in batches[:3]:
        ids = torch.from_numpy(batch.new_ids)
        hidden = model.states(batch.new_ids, None, rows)
        logits = hidden @ torch.cat([model.head.weight, head]).T
        for row, length in enumerate(batch.lengths):
            expected = torch.nn.functional.cross_entropy(
                logits[row, :length], ids[row, 1 : length + 1], reduction="none"
            )
            torch.testing.assert_close(ours[position : position + length], expected, rtol=1e-4, atol=1e-4)
            position += int(length)

    def surplus(rows: torch.Tensor) -> float:
        """How far the new tokens are from being as probable as they are frequent."""
        total = torch.logaddexp(states.old, torch.logsumexp(states.hidden @ rows.T, dim=1))
        expected = (states.hidden @ rows.T - total[:, None]).exp().sum(dim=0)
        counts = torch.bincount(states.coming[states.coming >= 0], minlength=NEW)
        return float((torch.log((counts + 0.5) / (expected + 0.5)) * counts).abs().sum() / counts.sum())

    calibrated = outputs.calibrated(states, head, bias, PLAIN)
    assert surplus(calibrated) < 0.5 * surplus(head)
    assert outputs.losses(states, calibrated, bias, PLAIN).mean() < ours.mean()
    fitted, figures = outputs.fit(states, head, bias, PLAIN, 0)
    assert min(figures) < figures[0] - 0.1
    anchored, _ = outputs.fit(states, head, bias, PLAIN, 0, outputs.Anchor(head, torch.eye(model.width), 1e6))
    assert (anchored - head).norm() < 0.1 * (fitted - head).norm()


class _KilledError(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 4, 14])
def test_a_killed_distillation_goes_on_to_the_same_bytes(
    at: int,
    tiny_model: Callable[..., Path],
    new_tokenizer: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tiny_model(tied=True)
    for name in ("BATCH_TOKENS", "RUNNING_BATCH_TOKENS", "RUNNING_LENGTH"):
        monkeypatch.setattr(both_sides, name, 60)
    resize(source, new_tokenizer, tmp_path / "whole", distilling(), corpus=[corpus])
    monkeypatch.setattr(state, "SECONDS", 0.0)
    save, calls = state.Saved.save, 0

    def dies(self: state.Saved, *words: Any, **named: Any) -> None:
        nonlocal calls
        save(self, *words, **named)
        calls += 1
        if calls == at:
            raise _KilledError

    monkeypatch.setattr(state.Saved, "save", dies)
    with pytest.raises(_KilledError):
        resize(source, new_tokenizer, tmp_path / "killed", distilling(), corpus=[corpus])
    assert not (tmp_path / "killed").exists()
    resize(source, new_tokenizer, tmp_path / "killed", distilling(), corpus=[corpus])
    file = "model.safetensors"
    assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not (tmp_path / "killed" / ".work").exists()


def test_a_bound_by_time_is_a_number_of_tokens_that_a_killed_run_goes_on_with(
    tiny_model: Callable[..., Path],
    new_tokenizer: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, file = tiny_model(), "model.safetensors"
    monkeypatch.setattr(both_sides, "PROBE_TOKENS", 60)
    with pytest.raises(UsageError, match=r"--distill-minutes 1e-05 is too short: .* at least 1"):
        resize(source, new_tokenizer, tmp_path / "short", distilling(distill_minutes=1e-5), corpus=[corpus])
    began = time.monotonic()
    resize(source, new_tokenizer, tmp_path / "probed", distilling(distill_minutes=5), corpus=[corpus])
    assert "300 of --distill-tokens 300 fit in 5 minutes" in capfd.readouterr().err
    minutes = (time.monotonic() - began) / 60
    options = distilling(distill_tokens=10**8, distill_output_tokens=2 * 10**8, distill_minutes=minutes)
    finish = inputs.distill_inputs

    def dies(*words: Any) -> Any:
        done = finish(*words)
        if (words[-1] / "plan.json").exists():  # the probe works in a folder of its own
            raise _KilledError
        return done

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "distill_inputs", dies)
        with pytest.raises(_KilledError):
            resize(source, new_tokenizer, tmp_path / "killed", options, corpus=[corpus])
    said = capfd.readouterr().err
    resize(source, new_tokenizer, tmp_path / "killed", options, corpus=[corpus])
    tokens = read_manifest(tmp_path / "killed").metrics["initialization"]["distill_tokens"]
    assert 60 <= tokens < 10**8
    assert f"{tokens:,} of --distill-tokens 100,000,000 fit" in said
    assert "fit in" not in capfd.readouterr().err
    same = distilling(distill_tokens=tokens, distill_output_tokens=2 * tokens)
    resize(source, new_tokenizer, tmp_path / "same", same, corpus=[corpus])
    assert (tmp_path / "same" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()


def test_tokens_that_the_text_lacks_are_counted_and_made_from_their_subtokens(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source, file = tiny_model(), tmp_path / "english.jsonl"
    file.write_text(json.dumps({"text": TEXTS[1]}) + "\n")
    lacks = np.setdiff1d(np.arange(OLD_SIZE, NEW_SIZE), load(new_tokenizer).encode([TEXTS[1]])[0])
    resize(source, new_tokenizer, tmp_path / "means", ResizeOptions())
    resize(source, new_tokenizer, tmp_path / "grown", distilling(), corpus=[file])
    counts = read_manifest(tmp_path / "grown").metrics["new_rows_by_subtokens_instead"]
    assert counts["embedding"] >= len(lacks) > 0
    means, grown = tensors(tmp_path / "means"), tensors(tmp_path / "grown")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        np.testing.assert_array_equal(means[name][lacks], grown[name][lacks])


def test_one_side_alone_leaves_the_other_to_the_subtokens(
    tiny_model: Callable[..., Path], new_tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    source = tiny_model()
    resize(source, new_tokenizer, tmp_path / "means", ResizeOptions())
    means = tensors(tmp_path / "means")
    for side, name in (("input", "lm_head.weight"), ("output", "model.embed_tokens.weight")):
        resize(source, new_tokenizer, tmp_path / side, distilling(distill_sides=side), corpus=[corpus])
        made = tensors(tmp_path / side)
        assert [key for key in made if not np.array_equal(made[key], means[key])] == [
            other for other in ("model.embed_tokens.weight", "lm_head.weight") if other != name
        ]


def test_what_cannot_be_distilled_is_refused_in_a_sentence(
    tiny_model: Callable[..., Path], old_tokenizer: Path, new_tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    source, plain = tiny_model(), tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"text": "z q z q"}) + "\n")
    with pytest.raises(UserError, match="holds none of the 69 new tokens"):
        resize(source, new_tokenizer, tmp_path / "grown", distilling(), corpus=[plain])
    with pytest.raises(UsageError, match="--distill-layers 9 is more than the 2 layers"):
        resize(source, new_tokenizer, tmp_path / "grown", distilling(distill_layers=9), corpus=[corpus])
    with pytest.raises(UsageError, match="--data are the texts"):
        resize(source, new_tokenizer, tmp_path / "grown", distilling())
    with pytest.raises(UsageError, match="--distill-tokens 0: must be at least 1"):
        DistillOptions(distill_tokens=0)
    other = tiny_model(name="other")
    changed = json.loads((other / "tokenizer.json").read_text())
    vocabulary = changed["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="does not extend"):
        resize(other, new_tokenizer, tmp_path / "grown", distilling(), corpus=[corpus])
    assert not (tmp_path / "grown").exists()
    with pytest.raises(UsageError, match=r"--untie: .* has a head of its own already"):
        resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions(untie=True))


def test_a_model_that_does_not_fit_is_refused_with_the_memory_that_it_needs(
    tiny_model: Callable[..., Path],
    new_tokenizer: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tiny_model(dtype="bfloat16")
    elements = sum(value.size for value in tensors(source).values())
    monkeypatch.setattr(source_model, "free_memory", lambda: 4 * elements - 1)
    for init, texts in ((distilling(), [corpus]), (ResizeOptions(init="linear"), [])):
        with pytest.raises(UserError, match=r"needs 0\.000 GB .* in float32, and 0\.000 GB are free"):
            resize(source, new_tokenizer, tmp_path / "grown", init, corpus=texts)
    monkeypatch.setattr(source_model, "free_memory", lambda: 4 * elements)
    SourceModel(load(source), False)


def test_the_ridge_finds_a_linear_map() -> None:
    generator = np.random.default_rng(0)
    states = generator.normal(size=(600, 20)).astype(np.float32) * np.geomspace(0.1, 10, 20).astype(
        np.float32
    )
    wanted = states @ generator.normal(size=(20, 7)).astype(np.float32) + 3
    matrix, constant, left = linear.fit(states, wanted)
    np.testing.assert_allclose(states @ matrix + constant, wanted, atol=0.3)
    assert left < 0.01
    assert linear.fit(states, generator.normal(size=(600, 7)).astype(np.float32))[2] > 0.8


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("gpt2", True)])
def test_linear_rows_come_from_split_old_tokens(
    architecture: str, tied: bool, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model(architecture, tied=tied)
    tokenizer = load(source)
    parts = linear.split_old_tokens(tokenizer, np.ones(OLD_SIZE, np.bool_), 100, 0)
    spelled = tokenizer.token_bytes()
    assert parts
    for i, ids in parts.items():
        assert 2 <= len(ids) <= linear.MOST_PARTS
        assert b"".join(spelled[part] for part in ids) == spelled[i]
    resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions(init="linear"))
    grown = tensors(tmp_path / "grown")
    embedding = next(value for name, value in grown.items() if "embed_tokens" in name or "wte" in name)
    assert np.isfinite(embedding).all()
    np.testing.assert_array_equal(
        embedding[:OLD_SIZE],
        next(v for n, v in tensors(source).items() if "embed_tokens" in n or "wte" in n)[:OLD_SIZE],
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_an_untied_model_computes_what_the_tied_one_did(
    architecture: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = tiny_model(architecture, tied=True)
    growth = ResizeOptions(untie=True, head_init="first-subtoken")
    resize(source, new_tokenizer, tmp_path / "grown", growth)
    assert json.loads((tmp_path / "grown" / "config.json").read_text())["tie_word_embeddings"] is False
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (source, tmp_path / "grown")]
    embedding, head = models[1].get_input_embeddings().weight, models[1].get_output_embeddings().weight
    assert embedding.data_ptr() != head.data_ptr()
    assert not torch.equal(embedding[OLD_SIZE:NEW_SIZE], head[OLD_SIZE:NEW_SIZE])
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        was, now = (model(input_ids=ids).logits for model in models)
    assert torch.equal(was[..., :OLD_SIZE], now[..., :OLD_SIZE])
