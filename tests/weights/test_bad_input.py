"""What users get wrong: one sentence, and the target absent or untouched."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.errors import UserError
from llmforge.weights.export import FormatOptions, export

INDEX = "model.safetensors.index.json"


def missing_shard(model: Path) -> None:
    next(model.glob("model-00002-*.safetensors")).unlink()


def truncated(model: Path) -> None:
    shard = next(model.glob("model-00002-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])


def nearly_empty(model: Path) -> None:
    next(model.glob("model-00002-*.safetensors")).write_bytes(b"1234")


def other_file(model: Path) -> None:
    next(model.glob("model-00002-*.safetensors")).write_bytes(b"<html>not found</html>" * 10)


def bad_header(model: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [2]}}'
    next(model.glob("model-00002-*.safetensors")).write_bytes(len(header).to_bytes(8, "little") + header)


def wrong_sizes(model: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}'
    shard = next(model.glob("model-00002-*.safetensors"))
    shard.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")


def index_names_absent_file(model: Path) -> None:
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "model-00099-of-00099.safetensors"
    (model / INDEX).write_text(json.dumps(index))


def index_leads_out(model: Path) -> None:
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "../../secret.safetensors"
    (model / INDEX).write_text(json.dumps(index))


def index_misplaces(model: Path) -> None:
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = next(
        file for file in index["weight_map"].values() if file != index["weight_map"]["lm_head.weight"]
    )
    (model / INDEX).write_text(json.dumps(index))


def index_is_no_json(model: Path) -> None:
    (model / INDEX).write_text("{")


def config_is_no_json(model: Path) -> None:
    (model / "config.json").write_text("{")


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def no_weights(model: Path) -> None:
    for file in model.glob("model*"):
        file.unlink()


def no_embedding(model: Path) -> None:
    from safetensors.numpy import save_file

    no_weights(model)
    import numpy as np

    save_file({"something": np.zeros(3)}, model / "model.safetensors")
    (model / "config.json").write_text('{"model_type": "unheard-of"}')


def claims_to_be_tied(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))


FAULTS: dict[Callable[[Path], None], str] = {
    missing_shard: "which is missing",
    truncated: "damaged .*should have",
    nearly_empty: "damaged",
    other_file: "damaged",
    bad_header: "damaged",
    wrong_sizes: "damaged .*shape",
    index_names_absent_file: "model-00099-of-00099.*which is missing",
    index_leads_out: "outside",
    index_misplaces: "lacks the tensor lm_head.weight",
    index_is_no_json: "not an index",
    config_is_no_json: "config.json",
    no_config: "config.json",
    no_weights: "no weights",
    no_embedding: "does not know the model_type",
    claims_to_be_tied: "tied",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_models(
    fault: Callable[[Path], None], tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model(shard_size="20KB")
    fault(source)
    with pytest.raises(UserError, match=FAULTS[fault]) as raised:
        resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=FAULTS[fault]):
        export(source, tmp_path / "exported", FormatOptions())
    assert not {"grown", "exported"} & {
        file.name.strip(".").removesuffix(".partial") for file in tmp_path.iterdir()
    }


def test_a_finished_target_survives_a_failure(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model(shard_size="20KB")
    resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())
    before = {file.name: file.read_bytes() for file in (tmp_path / "grown").iterdir()}
    truncated(source)
    with pytest.raises(UserError, match="damaged"):
        resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions(), overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "grown").iterdir()} == before


def test_pickled_code_is_not_run(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    source = tiny_model(pickled=True)
    torch.save({"weights": Evil()}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match="more than weights"):
        resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())
    assert not (tmp_path / "ran").exists()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x02garbage")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["llmforge", *sys.argv[2:]]
from llmforge.cli.main import main
main()
"""


@pytest.mark.parametrize("command", ["init-model", "export", "delta"])
def test_no_space_left(
    command: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk."""
    source = tiny_model(rows=8192)
    words = {
        "init-model": [
            *("init-model", "--source-model-and-tokenizer-path", source),
            *("--target-tokenizer-path", new_tokenizer, "--target-model-path", tmp_path / "out"),
        ],
        "export": ["export", "--checkpoint", source, "--output-dir", tmp_path / "out", "--dtype", "float32"],
        "delta": ["delta", "make", "--base", source, "--target", source, "--output", tmp_path / "out"],
    }[command]
    limit = 50_000 if command == "export" else 1_000_000
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"error: not enough disk space for {tmp_path / 'out'}: it needs" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*out*"))
