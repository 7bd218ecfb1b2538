"""Models that ranks share: filled and written without any rank holding one whole, with the bits of a plain load."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmforge.backends.common.model import empty_model, load_model
from llmforge.backends.common.sharded_weights import read_shards, reads_as_it_is
from llmforge.backends.common.storage import unique_state
from llmforge.errors import UserError
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.read import open_weights
from warm import TERMINAL, Warm

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def make_model(path: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **more}))
    model.to(dtype).save_pretrained(path)
    return path


def as_pickle(path: Path, names: dict[str, str]) -> None:
    """Rewrites the weights as pytorch_model.bin, tensors of `names` under a second name as well."""
    from safetensors.torch import load_file

    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save({**tensors, **{new: tensors[old] for new, old in names.items()}}, path / "pytorch_model.bin")


def logits(causal: Any) -> torch.Tensor:
    causal.eval()
    with torch.no_grad():
        return causal(torch.arange(50)[None]).logits


def filled(path: Path) -> Any:
    causal = empty_model(ModelDirectory(path), "eager")
    assert all(parameter.is_meta for parameter in causal.parameters())
    weights = open_weights(path)
    assert reads_as_it_is(causal, weights)
    buffers = [buffer.clone() for buffer in causal.buffers()]
    causal.to_empty(device="cpu")
    causal.tie_weights()
    for buffer, values in zip(causal.buffers(), buffers, strict=True):
        buffer.copy_(values)
    read_shards(unique_state(causal), weights, lambda tensor: (tensor, 0))
    return causal


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "rope_scaling": LLAMA3}),
        ("qwen2", {}),
        ("gemma", {"head_dim": 8}),
    ],
)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_model_filled_from_its_files_gives_the_logits_of_a_plain_load(
    kind: str, more: dict[str, Any], stored: torch.dtype, tmp_path: Path
) -> None:
    make_model(tmp_path, kind, stored, **more)
    assert torch.equal(logits(filled(tmp_path)), logits(load_model(ModelDirectory(tmp_path), "eager")))


def test_pickled_files_hold_a_tied_matrix_twice(tmp_path: Path) -> None:
    make_model(tmp_path, tie_word_embeddings=True)
    as_pickle(tmp_path, {"lm_head.weight": "model.embed_tokens.weight"})
    assert torch.equal(logits(filled(tmp_path)), logits(load_model(ModelDirectory(tmp_path), "eager")))


def test_tied_names_with_other_values_are_refused(tmp_path: Path) -> None:
    make_model(tmp_path, tie_word_embeddings=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(UserError, match="says that the model is tied"):
        reads_as_it_is(empty_model(ModelDirectory(tmp_path), "eager"), open_weights(tmp_path))


def test_experts_are_left_to_transformers_where_it_converts_them(tmp_path: Path) -> None:
    make_model(tmp_path, "mixtral", **EXPERTS)
    causal, weights = empty_model(ModelDirectory(tmp_path), "eager"), open_weights(tmp_path)
    assert reads_as_it_is(causal, weights) == (unique_state(causal).keys() == weights.tensors.keys())


@pytest.fixture
def in_two(warm: Warm, tmp_path: Path) -> Callable[..., list[Any]]:
    """`in_two(target, *words)`: what `target(rank, *words)`, a function of this file, returns in each of two ranks."""

    def run(target: Any, *words: Path) -> list[Any]:
        done = warm.run(
            [__file__, target.__name__, str(tmp_path / "result"), *map(str, words)],
            {**os.environ, **TERMINAL},
            240,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads((tmp_path / f"result-{rank}").read_text()) for rank in (0, 1)]

    return run


def run_rank() -> None:
    from llmforge.backends.common.processes import join_processes, leave_processes

    name, result, *words = sys.argv[1:]
    torch.set_num_threads(1)
    rank = join_processes(torch.device("cpu")).rank
    Path(f"{result}-{rank}").write_text(json.dumps(globals()[name](rank, *map(Path, words))))
    leave_processes()


def make_engine(model: Path, trainable: str) -> Any:
    from llmforge.backends.common.processes import world_from_environment
    from llmforge.backends.common.settings import Settings
    from llmforge.backends.common.trainable import parse
    from llmforge.backends.torch.parallel import FSDPEngine

    settings = Settings(
        ModelDirectory(model), "fp32", parse(trainable), old_rows=90, rows=96, groups=1, seed=0
    )
    return FSDPEngine(settings, world_from_environment())


def peak() -> int:
    """Peak bytes of memory of this process."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def load_and_save(rank: int, small: Path, large: Path, output: Path) -> tuple[int, int, int]:
    """By how many bytes the peak grows while `large` is loaded, and while it is saved, and how many it reads."""
    make_engine(small, "0").snapshot().write_model(output / "small")  # everything is imported now
    before, read = peak(), bytes_read()
    engine = make_engine(large, "0")
    loaded, read = peak(), bytes_read() - read
    engine.snapshot().write_model(output / "large")
    return loaded - before, peak() - before, read


def test_no_rank_holds_the_model(in_two: Any, tmp_path: Path) -> None:
    small = make_model(tmp_path / "small-model")
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 16_000}
    large = make_model(tmp_path / "large-model", **shape)
    size = (large / "model.safetensors").stat().st_size  # 250 MB
    for name in ("small", "large"):
        (tmp_path / "out" / name).mkdir(parents=True)
    for loading, saving, read in in_two(load_and_save, small, large, tmp_path / "out"):
        # Half of it, and what is under way: at most two blocks of 16 MB, or another rank's rows of one tensor.
        assert loading < 0.85 * size
        assert saving < 0.9 * size
        assert read < 0.6 * size
    written = (tmp_path / "out" / "large" / "model.safetensors").read_bytes()
    assert len(written) > 0.99 * size
    assert_same(large, tmp_path / "out" / "large")


def assert_same(one: Path, other: Path) -> None:
    from safetensors.torch import load_file

    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def save(rank: int, model: Path, output: Path) -> None:
    make_engine(model, "all").snapshot().write_model(output)


def test_weights_that_transformers_converts_are_dealt_out_by_rank_0(in_two: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "mixtral", **EXPERTS)
    (tmp_path / "out").mkdir()
    in_two(save, model, tmp_path / "out")
    shutil.copy(model / "config.json", tmp_path / "out")
    assert open_weights(tmp_path / "out").tensors.keys() == open_weights(model).tensors.keys()
    assert torch.equal(
        logits(load_model(ModelDirectory(tmp_path / "out"), "eager")),
        logits(load_model(ModelDirectory(model), "eager")),
    )


def refusal(rank: int, model: Path) -> str:
    with pytest.raises(UserError) as raised:
        make_engine(model, "all")
    return str(raised.value)


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="transformers 4 ties them all the same"
)
def test_a_tied_model_with_two_matrices_is_refused_by_every_rank(in_two: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", tie_word_embeddings=False)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    first, second = in_two(refusal, model)
    assert "lm_head.weight" in first
    assert "correct tie_word_embeddings" in first
    assert second == first


def save_where_it_fails(rank: int, model: Path, output: Path) -> str:
    snapshot = make_engine(model, "all").snapshot()
    try:
        snapshot.write_model(output)
    except OSError as error:
        return type(error).__name__
    finally:
        assert snapshot.agree(True)  # nobody waits for anybody
    return "written"


def test_a_save_that_fails_on_rank_0_leaves_no_rank_waiting(in_two: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    assert in_two(save_where_it_fails, model, tmp_path / "absent") == ["FileNotFoundError", "written"]


if __name__ == "__main__":
    from ranks import in_ranks

    in_ranks(2, run_rank)
