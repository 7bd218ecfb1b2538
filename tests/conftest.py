"""Fixtures that all tests share: real inputs by package name, and the installed command."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(Path(__file__).parent)]

from warm import COMMON, TERMINAL, WITHOUT_TORCH, Warm  # noqa: E402

ENVIRONMENT = {**os.environ, **TERMINAL}  # before anything is imported that changes it


@pytest.fixture(scope="session")
def real_input() -> Callable[[str], Path]:
    """`real_input("smollm2")` is the directory of that input (tools/real_inputs.py), fetched on first use."""
    from real_inputs import fetch

    return fetch


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Starts commands in processes that have torch imported already."""
    process = Warm(ENVIRONMENT)
    yield process
    process.close()


@pytest.fixture(scope="session")
def without_torch() -> Iterator[Warm]:
    """Starts the commands that do without torch."""
    process = Warm(ENVIRONMENT, COMMON, WITHOUT_TORCH)
    yield process
    process.close()


@pytest.fixture(scope="session")
def llmforge(warm: Warm, without_torch: Warm) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`llmforge("init-model", "--flag", value, code=0)` runs the command as a user does and checks its exit code.

    `python -m llmforge` is started where the environment is changed or `cold` asks for it; else a process forks that has
    imported what the command will.
    """

    def run(
        *words: object, code: int = 0, timeout: float = 600, cold: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = list(map(str, words))
        changed = {**os.environ, **TERMINAL, **environment}
        takers = [process for process in (warm, without_torch) if process.takes(command, changed)]
        if takers and not cold:
            done = takers[0].run(command, changed, timeout)
        else:
            done = subprocess.run(
                [sys.executable, "-m", "llmforge", *command],
                capture_output=True,
                text=True,
                timeout=timeout,
                env=changed,
            )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def run_python(warm: Warm, tmp_path: Path) -> Callable[[str], None]:
    """`run_python("import torch")` runs a program in a process of its own, which `warm` forks."""

    def run(text: str) -> None:
        (tmp_path / "program.py").write_text(text, encoding="utf-8")
        done = warm.run([str(tmp_path / "program.py")], {**os.environ, **TERMINAL}, 600)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of some 280 pieces with `<|end|>` as eos, as a Hugging Face directory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    directory = tmp_path_factory.mktemp("tokenizers") / "tiny"
    directory.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and then the rat ate the hat"] * 9, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "pad_token": "<|end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A random LLaMA of two layers, width 64 and 320 rows (some of them padding), with `tiny_tokenizer` in it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for file in tiny_tokenizer.iterdir():
        shutil.copy(file, directory)
    return directory
