"""init-model as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import NEW_SIZE, OLD_SIZE, TEXTS


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    lines = [{"target": text, "category": "zh" if ord(text[0]) > 255 else "en"} for text in TEXTS]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "heldout.jsonl"


def test_the_step_0_report_is_by_category(
    llmforge: Callable[..., Any],
    tiny_model: Callable[..., Path],
    new_tokenizer: Path,
    tmp_path: Path,
    heldout: Path,
) -> None:
    words = (
        *("init-model", "--source_model_and_tokenizer_path", tiny_model(tied=True)),
        *("--target-tokenizer-path", new_tokenizer, "--target-model-path", tmp_path / "grown"),
        *("--verify-corpus", heldout, f"all={heldout}"),
    )
    said = llmforge(*words).stdout
    assert f"{OLD_SIZE} ids -> {NEW_SIZE} ids in 384 rows" in said
    report = json.loads(llmforge(*words, "--json").stdout)
    assert report["skipped"]
    step_0 = report["metrics"]["step_0"]
    assert json.loads((tmp_path / "grown" / "llmforge.json").read_text())["metrics"]["step_0"] == step_0
    assert set(step_0) == {"source", "grown"}
    for model in step_0.values():
        assert set(model) == {"zh", "en", "all"}
        assert model["all"]["bytes"] == model["zh"]["bytes"] + model["en"]["bytes"]
    before, after = (step_0[name]["zh"] for name in ("source", "grown"))
    assert before["bytes"] == after["bytes"]
    assert after["tokens"] < before["tokens"]
    assert f"| grown | {step_0['grown']['zh']['bits_per_byte']:.4f} |"[:12] in said


def test_the_corpus_is_read_before_anything_is_written(
    llmforge: Callable[..., Any], tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    wrong = llmforge(
        *("init-model", "--source-model-and-tokenizer-path", tiny_model()),
        *("--target-tokenizer-path", new_tokenizer, "--target-model-path", tmp_path / "grown"),
        *("--verify-corpus", tmp_path / "absent.jsonl"),
        code=1,
    )
    assert "absent.jsonl" in wrong.stderr
    assert not (tmp_path / "grown").exists()


@pytest.mark.slow
def test_a_real_model_starts_from_its_subtokens(
    llmforge: Callable[..., Any], real_input: Callable[[str], Path], tmp_path: Path
) -> None:
    """SmolLM2 grown by one Chinese piece of its own sub-tokens keeps its logits, and its new row is their mean."""
    import numpy as np
    from safetensors import safe_open

    from llmforge.embedding.subtokens import spellings
    from llmforge.tokenizer import load

    source = real_input("smollm2")
    definition = json.loads((source / "tokenizer.json").read_text())
    vocabulary, merges = definition["model"]["vocab"], definition["model"]["merges"]
    first, second = "ä¸Ģ", "äºº"  # 一 and 人 in the byte alphabet, both pieces already
    assert first + second not in vocabulary
    vocabulary[first + second] = max(vocabulary.values()) + 1
    merges.append([first, second] if isinstance(merges[0], list) else f"{first} {second}")
    target = tmp_path / "tokenizer"
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps(definition))
    (target / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
    llmforge(
        *("init-model", "--source-model-and-tokenizer-path", source, "--target-tokenizer-path", target),
        *("--target-model-path", tmp_path / "grown"),
    )
    (ids,) = spellings(load(source), load(target))
    assert ids == [vocabulary[first], vocabulary[second]]
    with safe_open(source / "model.safetensors", "pt") as file:
        old = file.get_slice("model.embed_tokens.weight")[:].float().numpy()
    with safe_open(tmp_path / "grown" / "model.safetensors", "pt") as file:
        new = file.get_slice("model.embed_tokens.weight")[:].float().numpy()
    assert np.array_equal(new[: len(old)], old)
    np.testing.assert_allclose(new[len(old)], old[ids].mean(0), rtol=0.01, atol=1e-3)
    np.testing.assert_allclose(new[len(old) + 1 :], np.repeat(old.mean(0)[None], 63, 0), rtol=0.02, atol=1e-3)
