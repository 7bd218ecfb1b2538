"""Export to GGUF: what stands in the file is the model, and what llama.cpp has no equal of is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.errors import UsageError, UserError
from llmforge.steps import read_manifest
from llmforge.tokenizer.formats.schemes import LETTERS_TO_THREE_DIGITS, O200K, QWEN
from llmforge.weights.gguf.kinds import extra_tensors
from llmforge.weights.gguf.pre_tokenizers import pre_tokenizer_name
from llmforge.weights.gguf.write import export_gguf
from llmforge.weights.options import FormatOptions

from .conftest import OLD_SIZE
from .test_grow import tensors

gguf = pytest.importorskip("gguf")

TOLERANCES = {"float32": 0.0, "bfloat16": 2e-2, "float16": 1e-3, "q8_0": 2e-2}


def exported(model: Path, output: Path, dtype: str = "float32", **flags: Any) -> dict[str, Any]:
    """The tensors (float32) and fields of the GGUF file that `model` is exported as."""
    export_gguf(model, output, FormatOptions(format="gguf", dtype=dtype), **flags)
    reader = gguf.GGUFReader(output)
    found: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = np.array(values).reshape(tensor.shape[::-1].tolist())
    return found


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("pickled", [False, True])
def test_the_file_holds_the_model(
    dtype: str, pickled: bool, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model(rows=320, pickled=pickled)
    found = exported(model, tmp_path / "model.gguf", dtype)
    old = tensors(tiny_model(rows=320, name="same"))
    assert found["token_embd.weight"].shape == (OLD_SIZE, 32)
    assert found["llama.vocab_size"] == len(found["tokenizer.ggml.tokens"]) == OLD_SIZE
    near = {"rtol": 0, "atol": TOLERANCES[dtype]}
    np.testing.assert_allclose(found["output.weight"], old["lm_head.weight"][:OLD_SIZE], **near)
    np.testing.assert_allclose(
        found["blk.1.ffn_down.weight"], old["model.layers.1.mlp.down_proj.weight"], **near
    )
    np.testing.assert_array_equal(found["output_norm.weight"], old["model.norm.weight"])
    # Heads of 8: the rotary halves of each, rows 0 to 3 and 4 to 7, lie interleaved.
    order = np.arange(32).reshape(4, 2, 4).swapaxes(1, 2).reshape(-1)
    np.testing.assert_allclose(
        found["blk.0.attn_q.weight"], old["model.layers.0.self_attn.q_proj.weight"][order], **near
    )
    assert found["llama.attention.head_count_kv"] == 2
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.eos_token_id"] == 0
    assert read_manifest(tmp_path / "model.gguf").outputs["vocabulary"]["padded"] == OLD_SIZE


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("llama", "llama"),
        ("mistral", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("gemma", "gemma"),
        ("phi3", "phi3"),
    ],
)
def test_every_name_is_one_of_llama_cpp(
    architecture: str, name: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    tied = architecture == "gemma"
    found = exported(tiny_model(architecture, tied=tied), tmp_path / "model.gguf")
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    known = {gguf.TENSOR_NAMES[kind].format(bid=0) for kind in gguf.MODEL_TENSORS[number]}
    own = {key.rpartition(".")[0] for key in found if key.startswith(("blk.0.", "output", "token_embd"))}
    assert own <= known
    assert found["general.architecture"] == name
    assert ("output.weight" in found) is not tied
    if architecture == "gemma":
        old = tensors(tmp_path / "source")["model.layers.0.input_layernorm.weight"]
        np.testing.assert_array_equal(found["blk.0.attn_norm.weight"], old + 1)


def test_rows_that_q8_0_cannot_cut_are_float16(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model(intermediate_size=40)
    export_gguf(model, tmp_path / "model.gguf", FormatOptions(format="gguf", dtype="q8_0"))
    kinds = {
        tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors
    }
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_norm.weight"] == "F32"


def test_llama_3_positions(tiny_model: Callable[..., Path]) -> None:
    """The factors are those by which transformers divides the frequencies."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64}
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, rope_parameters={**scaling, "rope_theta": 1e4}
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1e4 ** -(np.arange(0, 32, 2) / 32)
    stated = {"hidden_size": 64, "num_attention_heads": 2, "rope_theta": 1e4, "rope_scaling": scaling}
    np.testing.assert_allclose(
        plain / frequencies.numpy(), extra_tensors(stated)["rope_freqs.weight"], rtol=1e-5
    )


def byte_level(*steps: dict[str, Any], **model: Any) -> dict[str, Any]:
    """The parts of a `tokenizer.json` that say how words are cut."""
    pre = {
        "type": "Sequence",
        "pretokenizers": [*steps, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}],
    }
    return {
        "normalizer": None,
        "pre_tokenizer": pre,
        "added_tokens": [],
        "model": {"vocab": {}, "merges": [], **model},
    }


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("definition", "name"),
    [
        (byte_level(split(QWEN)), "qwen2"),
        (byte_level(split(LETTERS_TO_THREE_DIGITS), ignore_merges=True), "llama-bpe"),
        (byte_level(split(LETTERS_TO_THREE_DIGITS)), "smaug-bpe"),
        (byte_level({**split(QWEN), "behavior": "Removed", "invert": True}), "qwen2"),
        ({**byte_level(), "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, "gpt-2"),
        (byte_level({"type": "Digits", "individual_digits": True}, split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")), "smollm"),
        ({**byte_level(split(QWEN)), "normalizer": {"type": "NFC"}}, "qwen2"),
        (byte_level(split(O200K)), "gpt-4o"),
    ],
)  # fmt: skip
def test_names_of_pre_tokenizers(definition: dict[str, Any], name: str) -> None:
    assert pre_tokenizer_name(definition, Path("tokenizer")) == name


@pytest.mark.parametrize(
    "definition",
    [
        byte_level(split(r"\w+|\W+")),
        byte_level(split(QWEN), split(QWEN)),
        byte_level({"type": "Digits", "individual_digits": False}, split(QWEN)),
        byte_level({**split(QWEN), "behavior": "MergedWithNext"}),
        byte_level({"type": "Whitespace"}),
        byte_level(),
        byte_level(split(QWEN), ignore_merges=True),
        {**byte_level(split(QWEN)), "normalizer": {"type": "NFKC"}},
        {**byte_level(split(QWEN)), "normalizer": {"type": "Lowercase"}},
        {**byte_level(), "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        byte_level(split(QWEN), end_of_word_suffix="</w>"),
    ],
)
def test_what_llama_cpp_does_not_cut_alike_is_refused(definition: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"GGUF|cannot be exported"):
        pre_tokenizer_name(definition, Path("tokenizer"))


def sentencepiece_model(directory: Path, **changes: Any) -> Path:
    """`directory` with a tokenizer in which pieces are made of characters with `▁` for spaces."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{i:02X}>": 3 + i for i in range(256)}}
    for piece in ("▁", "a", "b", "ab", "▁a", "▁ab"):
        vocabulary[piece] = len(vocabulary)
    merges = [["▁", "a"], ["a", "b"], ["▁a", "b"], ["▁", "ab"]]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    definition = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": one, **flags} for i, one in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary, "merges": merges},
    }  # fmt: skip
    changes.setdefault("model", {})
    definition["model"] = {**definition["model"], **changes.pop("model")}
    (directory / "tokenizer.json").write_text(json.dumps({**definition, **changes}), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_sentencepiece_scores_follow_the_merges(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    found = exported(sentencepiece_model(tiny_model()), tmp_path / "model.gguf")
    scores = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"], strict=True))
    assert scores["▁a"] > scores["ab"] > scores["▁ab"]
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x41>"], kinds["ab"]) == (2, 3, 6, 1)
    assert found["tokenizer.ggml.add_space_prefix"] is True
    assert found["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": {"byte_fallback": False}}, "no byte fallback"),
        ({"model": {"merges": [["▁", "a"], ["a", "b"], ["▁a", "b"]]}}, "no merge"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}}, "no equal of"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}}, "no equal"),
    ],
)  # fmt: skip
def test_sentencepiece_that_llama_cpp_merges_otherwise(
    changes: dict[str, Any], what: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = sentencepiece_model(tiny_model(), **changes)
    with pytest.raises(UserError, match=what):
        exported(model, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("architecture", "changes", "what"),
    [
        ("gpt2", {}, "of type gpt2"),
        ("llama", {"hidden_act": "gelu"}, "activation"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "no dynamic scaling"),
        ("gemma", {}, "not tied"),
        ("qwen3", {"attention_bias": True}, "no place for the tensor"),
    ],
)
def test_models_that_llama_cpp_computes_otherwise(
    architecture: str, changes: dict[str, Any], what: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model(architecture, **changes)
    with pytest.raises(UserError, match=what):
        exported(model, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_window_that_llama_cpp_ignores_is_told(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tiny_model("mistral", sliding_window=64), tmp_path / "model.gguf")
    assert "64 tokens back" in capsys.readouterr().err


def test_a_tokenizer_without_eos(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model()
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="names no eos token"):
        exported(model, tmp_path / "model.gguf")


def test_without_the_package(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'llmforge\[gguf\]'"):
        export_gguf(model, tmp_path / "model.gguf", FormatOptions(format="gguf"))
    assert not list(tmp_path.glob("*.gguf*"))


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="q8_0 is for --format gguf"):
        FormatOptions(dtype="q8_0")
    with pytest.raises(UsageError, match="--verify"):
        FormatOptions(format="gguf", verify=True)


def test_the_command(llmforge: Callable[..., Any], tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model(rows=320)
    words = ("export", "--checkpoint", model, "--format", "gguf", "--output")
    done = llmforge(*words, tmp_path / "model.gguf", "--dtype", "q8_0")
    assert "19 padding rows removed" in done.stdout
    assert "already done" in llmforge(*words, tmp_path / "model.gguf", "--dtype", "q8_0").stdout
    assert "must end in .gguf" in llmforge(*words, tmp_path / "model", code=1).stderr
