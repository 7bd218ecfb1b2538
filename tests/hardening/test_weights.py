"""Hostile model directories: damaged headers, indices and configurations, links that lead out, code that must not run."""

import ast
import json
import os
import pty
import shutil
import time
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmforge.errors import UserError
from llmforge.weights.completeness import check_complete
from llmforge.weights.export import FormatOptions, export
from llmforge.weights.files import copy_file
from llmforge.weights.read import open_weights
from warm import TERMINAL, Warm

SOURCE = Path(__file__).parents[2] / "src" / "llmforge"
INDEX = "model.safetensors.index.json"


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, end: int, dtype: Any = "F32", shape: Any = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - start) // 4] if shape is None else shape,
        "data_offsets": [start, end],
    }


HEADERS: dict[str, tuple[bytes, str]] = {
    "overlap": (safetensors({"a": entry(0, 8), "b": entry(4, 12)}, b"1" * 12), "b overlaps"),
    "the same bytes": (safetensors({"a": entry(0, 8), "b": entry(0, 8)}, b"1" * 8), "overlaps"),
    "hole": (safetensors({"a": entry(0, 8), "b": entry(12, 16)}, b"1" * 16), "b does not follow"),
    "hole at the start": (safetensors({"a": entry(4, 8)}, b"1" * 8), "a does not follow"),
    "trailing bytes": (safetensors({"a": entry(0, 8)}, b"1" * 9), "should have"),
    "too short": (safetensors({"a": entry(0, 8)}, b"1" * 7), "should have"),
    "header longer than the file": ((1 << 40).to_bytes(8, "little") + b"{}", "too few for its header"),
    "empty": (b"", "too few for its header"),
    "name twice": (
        safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), b"1234"),
        "a twice",
    ),
    "size against shape": (
        safetensors({"a": entry(0, 8, shape=[3])}, b"1" * 8),
        "a does not follow from its",
    ),
    "8 bits": (
        safetensors({"a": entry(0, 8, "F8_E4M3", [8])}, b"1" * 8),
        "a has the dtype F8_E4M3, a quantized",
    ),
    "4 bits": (safetensors({"a": entry(0, 8, "F4", [16])}, b"1" * 8), "a has the dtype F4, a quantized"),
    "unknown dtype": (safetensors({"a": entry(0, 8, "X9")}, b"1" * 8), "a has the dtype X9"),
    "dtype is a list": (safetensors({"a": entry(0, 8, ["F32"])}, b"1" * 8), "where a lies"),
    "negative shape": (safetensors({"a": entry(0, 8, shape=[-2])}, b"1" * 8), "where a lies"),
    "booleans for numbers": (safetensors({"a": entry(0, 4, shape=[True])}, b"1" * 4), "where a lies"),
    "enormous shape": (safetensors({"a": entry(0, 4, shape=[1 << 62] * 9)}, b"1" * 4), "a does not follow"),
    "backwards": (safetensors({"a": entry(8, 0, shape=[2])}, b"1" * 8), "where a lies"),
    "nested": (safetensors(b"[" * 100_000), "header is not"),
    "nested objects": (safetensors(b'{"a":' * 100_000), "header is not"),
    "list": (safetensors([1]), "header is not"),
    "digits": (safetensors(b'{"a":' + b"9" * 5000 + b"}"), "header is not"),
    "entry is text": (safetensors({"a": "b"}), "where a lies"),
    "escape in a name": (safetensors({"\x1b[2J": "b"}), r"where '\\x1b\[2J' lies"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_headers_are_named(case: str, tmp_path: Path) -> None:
    content, sentence = HEADERS[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as raised:
        open_weights(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'model.safetensors'}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "index",
    [
        *(
            '{"weight_map": {"a": "../x"}}',
            '{"weight_map": {"a": "/etc/passwd"}}',
            '{"weight_map": {"a": ".."}}',
        ),
        *('{"weight_map": {"a": 1}}', '{"weight_map": []}', '{"weight_map": {}}', "{}", "[]", "1", ""),
        *(
            '{"weight_map": {"a": "\\u0000"}}',
            '{"weight_map": {"a": "\\ud800"}}',
            '{"weight_map": {"a": ""}}',
        ),
        '{"weight_map": ' + '{"a": ' * 100_000,
    ],
)
def test_damaged_indices_are_named(index: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(UserError, match=INDEX) as raised:
        open_weights(tmp_path)
    assert "\n" not in str(raised.value)


def test_other_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.fp16.safetensors").write_bytes(safetensors({"a": entry(0, 4)}, b"1234"))
    with pytest.raises(UserError, match=r"no weights .* model\.fp16\.safetensors"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000"),
        ({"num_hidden_layers": 5000}, "asks for more than"),
        ({"num_hidden_layers": -1}, "lacks|tensors"),
        ({"num_hidden_layers": "many"}, "config.json|causal"),
        ({"hidden_size": 10**15}, "hidden_size"),
        ({"num_attention_heads": 0}, "config.json|causal"),
        ({"vocab_size": 7}, "embed_tokens.weight has the shape"),
        ({"vocab_size": None}, "config.json|causal"),
        ({"model_type": ["llama"]}, "model_type is not a string"),
        ({"model_type": "unheard-of"}, "does not know the model_type"),
        ({"rope_parameters": [1], "rope_scaling": 7}, "config.json|causal"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized .fp8."),
        ({"transformers_weights": "other.safetensors"}, "other.safetensors"),
    ],
)
def test_configurations_against_the_weights(
    fields: dict[str, Any], sentence: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = {**json.loads((model / "config.json").read_text()), **fields}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        check_complete(model)


def test_nested_and_adapted_models(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter"):
        check_complete(model)
    (model / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match="not a JSON object"):
        check_complete(model)


NUMBERS = st.one_of(st.integers(-3, 70), st.sampled_from([2**31, 10**9, 10**18, -(10**18)]))
ANYTHING = st.recursive(
    st.one_of(NUMBERS, st.none(), st.booleans(), st.floats(), st.text(max_size=4), st.just("F32")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
ENTRY = st.one_of(
    ANYTHING,
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "BF16", "F8_E5M2", "I64"]), ANYTHING),
            "shape": st.one_of(st.lists(NUMBERS, max_size=3), ANYTHING),
            "data_offsets": st.one_of(st.lists(NUMBERS, min_size=1, max_size=3), ANYTHING),
        }
    ),
)
NAMES = st.sampled_from(["model.norm.weight", "lm_head.weight", "a", "__metadata__"])
FIELDS = st.sampled_from(
    [
        *(
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        ),
        *("vocab_size", "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings"),
        *(
            "model_type",
            "max_position_embeddings",
            "layer_types",
            "torch_dtype",
            "dtype",
            "auto_map",
            "architectures",
        ),
        *("hidden_act", "quantization_config", "transformers_weights", "pad_token_id", "text_config"),
    ]
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(ANYTHING, st.dictionaries(NAMES, ENTRY, max_size=3)),
    st.binary(max_size=64),
    st.one_of(ANYTHING, st.fixed_dictionaries({"weight_map": st.dictionaries(NAMES, ANYTHING, max_size=2)})),
    st.dictionaries(FIELDS, ANYTHING, min_size=1, max_size=3),
)
@example(header={}, data=b"", index={"weight_map": {}}, fields={"transformers_weights": [0]})
def test_any_header_index_and_configuration_is_read_or_refused(
    tiny_model: Path, tmp_path: Path, header: object, data: bytes, index: object, fields: dict[str, Any]
) -> None:
    model = tmp_path / "fuzzed"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    (model / INDEX).write_text(json.dumps(index))
    for content in (None, safetensors(header, data)):
        if content is not None:
            (model / "model.safetensors").write_bytes(content)
        with suppress(UserError):
            open_weights(model)
    shutil.copy(tiny_model / "model.safetensors", model)
    config = {**json.loads((tiny_model / "config.json").read_text()), **fields}
    (model / "config.json").write_text(json.dumps(config))
    with suppress(UserError):
        check_complete(model)


def test_links_that_lead_out_are_not_copied(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (tmp_path / "secret").write_text("secret")
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="LICENSE is a link to"):
        export(model, tmp_path / "out", FormatOptions())
    assert not (tmp_path / "out").exists()


def test_the_cache_of_the_hub_is_made_of_links(tiny_model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(tiny_model.iterdir())):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    export(snapshot, tmp_path / "out", FormatOptions())
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    (tmp_path / "secret").write_text("secret")
    (snapshot / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="outside its directory"):
        copy_file(snapshot / "LICENSE", tmp_path)


LOADERS = ("from_pretrained", "from_config", "pipeline")


def test_trust_remote_code_is_always_passed() -> None:
    """Where it is not, transformers asks on a terminal, and runs the code after a `y`."""
    calls = 0
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LOADERS
                and ast.unparse(node.func.value) != "PeftModel"  # reads weights over a model that is there
            ):
                calls += 1
                words = {keyword.arg: keyword.value for keyword in node.keywords}
                value = words.get("trust_remote_code")
                where = f"{file.relative_to(SOURCE)}:{node.lineno}"
                assert value is not None, f"{where} leaves trust_remote_code to transformers"
                assert not (isinstance(value, ast.Constant) and value.value is not False), where
    assert calls >= 8


HOSTILE = "import pathlib\npathlib.Path({mark!r}).touch()\nraise SystemExit('ran')\n"


@pytest.fixture(scope="module")
def hostile_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can be read only by running its own code, which leaves the file `ran` beside it."""
    model = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("hostile") / "model"))
    auto = {
        "AutoConfig": "code.Config",
        "AutoModelForCausalLM": "code.Model",
        "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
    }
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((model / name).read_text())
        content["auto_map"] = auto
        if name == "config.json":
            content["model_type"] = "hostile"
        (model / name).write_text(json.dumps(content))
    (model / "code.py").write_text(HOSTILE.format(mark=str(model.parent / "ran")))
    (model / "custom_generate").mkdir()
    shutil.copy(model / "code.py", model / "custom_generate" / "generate.py")
    return model


def on_a_terminal(warm: Warm, *words: object) -> tuple[int, str]:
    """(exit code, what was printed) of the command on a pseudo-terminal where someone answers `y` to everything."""
    master, slave = pty.openpty()
    process = warm.start([*map(str, words)], {**os.environ, **TERMINAL}, os.ttyname(slave))
    os.write(master, b"y\n" * 20)
    printed, deadline = b"", time.monotonic() + 120
    while process.poll() is None or select([master], [], [], 0)[0]:
        assert time.monotonic() < deadline, printed
        if select([master], [], [], 0.05)[0]:
            printed += os.read(master, 65536)
    os.close(slave)
    os.close(master)
    return process.wait(), printed.decode(errors="replace")


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        pytest.param("evaluate", marks=pytest.mark.slow),
        "init-model",
        pytest.param("export", marks=pytest.mark.slow),
        pytest.param("export --verify", marks=pytest.mark.slow),
        pytest.param("train", marks=pytest.mark.slow),
        pytest.param("plan", marks=pytest.mark.slow),
        pytest.param("prepare-data", marks=pytest.mark.slow),
        pytest.param("compare-tokenizers", marks=pytest.mark.slow),
    ],
)
def test_code_beside_a_model_never_runs(
    command: str, hostile_model: Path, tiny_tokenizer: Path, tmp_path: Path, llmforge: Any, warm: Warm
) -> None:
    text = tmp_path / "text.jsonl"
    line = {"source": "", "target": "the cat sat on the mat", "text": "the cat", "category": "a"}
    text.write_text(json.dumps(line) + "\n")
    out = tmp_path / "out"
    words: dict[str, tuple[object, ...]] = {
        "generate": ("--model", hostile_model, "--prompt", "the"),
        "evaluate": ("--model", hostile_model, "--data", f"t={text}"),
        "init-model": (
            *("--source-model-and-tokenizer-path", hostile_model),
            *("--target-tokenizer-path", tiny_tokenizer, "--target-model-path", out),
        ),
        "export": ("--checkpoint", hostile_model, "--output-dir", out),
        "export --verify": ("--checkpoint", hostile_model, "--output-dir", out),
        "prepare-data": (
            *("--data-input-dirs", text, "--tokenizer-dir", hostile_model),
            *("--data-output-dir", out, "--max-length", 16),
        ),
        "compare-tokenizers": ("--tokenizer", hostile_model, "--data", f"t={text}"),
    }
    if command in ("train", "plan"):
        data = tmp_path / "data"
        llmforge(
            *("prepare-data", "--data-input-dirs", text, "--tokenizer-dir", tiny_tokenizer),
            *("--data-output-dir", data, "--max-length", 16),
        )
        words[command] = ("--pretrained", hostile_model, "--dataset", data)
        words["train"] = (*words[command], "--save-dir", out)
    code, printed = on_a_terminal(warm, *command.split(), *words[command])
    assert not (hostile_model.parent / "ran").exists(), printed
    assert "Do you wish to run" not in printed
    assert "Traceback" not in printed
    said = " ".join(printed.split())
    if command in ("generate", "evaluate", "export --verify", "train", "plan"):
        assert code == 1, printed
        assert "custom code (auto_map)" in said
    if command in ("init-model", "export"):
        assert code == 0, printed
        assert "custom code (auto_map)" in said
        assert (out / "code.py").read_bytes() == (hostile_model / "code.py").read_bytes()
