"""Tiny tokenizers and models with random weights, made on the spot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXTS = [
    "the cat sat on the mat and the other cat looked at the hat on that mat",
    "continual pretraining grows a tokenizer, then a model, then trains the new rows alone",
    "中文的词语被拆成字节，模型要学会新的词语。中文的模型学会中文的词语。",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。",
]
OLD_SIZE, NEW_SIZE = 301, 370


def make_tokenizer(directory: Path, size: int) -> Path:
    """A byte-level BPE tokenizer of `size` ids; a larger one extends a smaller one."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    assert backend.get_vocab_size() == size
    directory.mkdir(parents=True)
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def old_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of OLD_SIZE ids."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "old", OLD_SIZE)


@pytest.fixture(scope="session")
def new_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, extended to NEW_SIZE ids."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "new", NEW_SIZE)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "qwen2": {**SMALL, "num_key_value_heads": 2},
    "qwen3": GROUPED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gemma": GROUPED,
    "phi3": {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0},
    "phi": {**SMALL, "num_key_value_heads": 2},
    "gpt_neox": SMALL,
    # Names that are in no list of ours: transformers is asked.
    "ctrl": {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2},
}
SPECIAL_IDS = {"bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture
def tiny_model(tmp_path: Path, old_tokenizer: Path) -> Callable[..., Path]:
    """`tiny_model("llama", rows=301, tied=False, dtype="bfloat16", pickled=False)` writes one with the old
    tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(
        architecture: str = "llama",
        rows: int = OLD_SIZE,
        *,
        tied: bool = False,
        dtype: str = "float32",
        pickled: bool = False,
        shard_size: str = "5GB",
        name: str = "source",
        seed: int = 0,
        **changes: Any,
    ) -> Path:
        torch.manual_seed(seed)
        settings = {**ARCHITECTURES[architecture], **SPECIAL_IDS, **changes}
        config = AutoConfig.for_model(architecture, vocab_size=rows, tie_word_embeddings=tied, **settings)
        model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
        for parameter in model.parameters():  # biases and norms too, which start as constants
            torch.nn.init.normal_(parameter, std=0.2)
        directory = tmp_path / name
        if pickled:
            directory.mkdir()
            model.config.save_pretrained(directory)
            torch.save(model.state_dict(), directory / "pytorch_model.bin")
        else:
            model.save_pretrained(directory, max_shard_size=shard_size)
        for file in old_tokenizer.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        return directory

    return make
