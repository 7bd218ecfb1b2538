"""llama.cpp on exported GGUF files: the ids of 1,000 documents, the logits, the likeliest continuation.

The environment of llama-cpp-python (`pip install llama-cpp-python` builds it) is named by LLMFORGE_PYTHON_LLAMA_CPP.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.tokenizer import load
from llmforge.weights.gguf.write import export_gguf
from llmforge.weights.options import FormatOptions

PROBE = Path(__file__).parent / "llama_probe.py"
PYTHON = os.environ.get("LLMFORGE_PYTHON_LLAMA_CPP", "")
pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(
        not PYTHON, reason="LLMFORGE_PYTHON_LLAMA_CPP names no environment of llama-cpp-python"
    ),
]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
# (transformers' configuration, its fields, the tokenizer)
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama-sentencepiece": ("LlamaConfig", {}, "mistral"),
    "llama-sentencepiece-hf": ("LlamaConfig", {"tie_word_embeddings": True}, "mistral-hf"),
    "llama-3": ("LlamaConfig", {"rope_parameters": LLAMA3}, "llama3-hf"),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}, "smollm2"),
    "llama-deepseek": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        "deepseek",
    ),
    "mistral": ("MistralConfig", {"sliding_window": None, "head_dim": 32}, "mistral-v3"),
    "qwen2": ("Qwen2Config", {"rope_parameters": YARN}, "qwen3"),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}, "qwen3"),
    "gemma": ("GemmaConfig", {"head_dim": 32}, "gemma"),
    "gemma2": ("Gemma2Config", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}, "gemma"),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7},
        "gemma3",
    ),
    "phi3": (
        "Phi3Config",
        {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": None},
        "mistral",
    ),
}


def documents(real_input: Callable[[str], Path], count: int) -> Iterator[str]:
    """English, Chinese and code in turn, cut to 600 characters, and texts that cut words in odd ways."""
    files = [real_input("demo") / "train" / f"{name}.jsonl" for name in ("en", "zh")]
    sources = [iter(path.open(encoding="utf-8")) for path in (*files, real_input("stdlib") / "stdlib.jsonl")]
    odd = [
        "3 33 3333333 3.14e-10",
        "I'Ve you'LL 'S x'm",
        "a\r\n\r\n  b\t\tc \n",
        "🚀 👩‍👩‍👧 ไทย नमस्ते",
        " lead",
        "ends ",
        "\n",
        "<s> </s> <|im_end|>",
    ]
    yield from odd
    for number in range(count - len(odd)):
        yield json.loads(next(sources[number % 3]))["target"][:600]


def make_model(tmp_path: Path, config_name: str, fields: dict[str, Any], tokenizer: Path) -> Path:
    """A random model with as many rows as `tokenizer` has ids, and seven rows of padding."""
    import torch
    import transformers

    directory = tmp_path / "model"
    torch.manual_seed(0)
    size = load(tokenizer).size
    config = getattr(transformers, config_name)(**{**SIZES, "vocab_size": size + 7, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():  # norms are all one, or all zero, and biases zero
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 0.0 if "gemma" in config.model_type or "bias" in name else 1.0, 0.3)
        else:
            torch.nn.init.normal_(weight, 0.0, 0.1)
    model.save_pretrained(directory)
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy(file, directory)
    return directory


def compare(model: Path, tmp_path: Path, texts: list[str], allowed: float = 2e-3) -> None:
    """Exports `model` in float32 and asks llama.cpp and transformers for the same things."""
    import torch
    import transformers

    export_gguf(model, tmp_path / "model.gguf", FormatOptions(format="gguf", dtype="float32"))
    tokenizer = load(model)
    flat, offsets = tokenizer.encode(texts)
    prompt = [*tokenizer.prefix_ids, *flat[: 40 - len(tokenizer.prefix_ids)].tolist()]
    (tmp_path / "asked.json").write_text(json.dumps({"texts": texts, "prompt": prompt, "new": 24}))
    done = subprocess.run(
        [PYTHON, PROBE, tmp_path / "model.gguf", tmp_path / "asked.json", tmp_path / "out.npz"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = np.load(tmp_path / "out.npz")
    bounds = np.concatenate([[0], np.cumsum(out["lengths"])])
    wrong = [
        text
        for i, text in enumerate(texts)
        if out["ids"][bounds[i] : bounds[i + 1]].tolist() != flat[offsets[i] : offsets[i + 1]].tolist()
    ]
    assert not wrong, f"{len(wrong)} of {len(texts)} documents have other ids, the first {wrong[0][:200]!r}"
    assert out["with_bos"].tolist() == [*tokenizer.prefix_ids, *flat[: offsets[1]].tolist()]
    assert int(out["eos"]) == tokenizer.eos_id
    causal = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = list(prompt)
    with torch.inference_mode():
        logits = causal(torch.tensor([ids])).logits[0, :, : tokenizer.size].numpy()
        assert out["logits"].shape == logits.shape
        assert np.abs(out["logits"] - logits).max() < allowed * max(1.0, np.abs(logits).max())
        for _ in range(24):
            row = causal(torch.tensor([ids])).logits[0, -1, : tokenizer.size]
            ids.append(int(row.argmax()))
    assert out["greedy"].tolist() == ids[len(prompt) :]


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_same(name: str, real_input: Callable[[str], Path], tmp_path: Path) -> None:
    config, fields, tokenizer = MODELS[name]
    texts = [text for text in documents(real_input, 1000) if not is_told(text, tokenizer)]
    compare(make_model(tmp_path, config, fields, real_input(tokenizer)), tmp_path, texts)


def is_told(text: str, tokenizer: str) -> bool:
    """Whether the export warns that llama.cpp gives other ids for such a text: one that is not composed, where the tokenizer
    composes; one that begins with a space, where that takes the place of the prefix; one that spells `</s>`, where that is a
    tag of HTML and no special token.
    """
    import unicodedata

    if tokenizer == "qwen3":
        return not unicodedata.is_normalized("NFC", text)
    if tokenizer == "mistral-v3":
        return text.startswith(" ")
    return tokenizer.startswith("gemma") and "</s>" in text


def test_smollm2(real_input: Callable[[str], Path], tmp_path: Path) -> None:
    compare(real_input("smollm2"), tmp_path, list(documents(real_input, 1000)))


def test_a_grown_smollm2(
    real_input: Callable[[str], Path], llmforge: Callable[..., Any], tmp_path: Path
) -> None:
    texts, source = real_input("demo") / "train" / "zh.jsonl", real_input("smollm2")
    pieces, tokenizer = tmp_path / "pieces.jsonl", tmp_path / "tokenizer"
    given = ("--tokenizer", source)
    llmforge("learn-pieces", "--data", texts, *given, "--num-pieces", 500, "--output", pieces)
    llmforge("init-tokenizer", *given, "--pieces", pieces, "--output", tokenizer)
    llmforge("init-model", "--model", source, "--tokenizer", tokenizer, "--output", tmp_path / "resized")
    compare(tmp_path / "resized", tmp_path, list(documents(real_input, 1000)))
