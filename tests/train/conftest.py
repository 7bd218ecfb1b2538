"""A model of 50,000 parameters, its tokenizer, and datasets in the layout that training reads."""

import dataclasses
import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from warm import TERMINAL, Started, Warm

RANKS = str(Path(__file__).parents[1] / "ranks.py")

WORDS = [f"{a}{b}" for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "ai", "ou")]
OLD_ROWS, ROWS, PADDED = 300, 330, 336
LENGTH = 48


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grown LLaMA-architecture model directory with a byte-level BPE tokenizer, as init-model leaves it."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


def make_model(path: Path, seed: int = 0, **overrides: Any) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmforge import tokenizer
    from llmforge.steps import Manifest, fingerprint, manifest_path, write_manifest

    path.mkdir(parents=True)
    settings = {
        "vocab_size": PADDED,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **overrides,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(path)
    make_tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|endoftext|>",
                "eos_token": "<|endoftext|>",
            }
        )
    )
    loaded = tokenizer.load(path)
    assert loaded.size == ROWS
    files = {file.name: file.stat().st_size for file in path.iterdir()}
    outputs = {
        "vocabulary": {"source": OLD_ROWS, "size": ROWS, "padded": settings["vocab_size"]},
        "tokenizer": loaded.fingerprint,
        "fingerprint": fingerprint(path),
        "files": files,
    }
    write_manifest(manifest_path(path), Manifest("init-model", {}, outputs=outputs))
    return path


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Path]:
    """`make_tiny_model(path, vocab_size=384)` makes such a directory with other sizes."""
    return make_model


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return built


@pytest.fixture(scope="session")
def make_dataset(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_dataset(rows=40, parts=2, seed=0)` is a dataset directory of packed random documents of two
    categories.
    """

    def make(
        rows: int = 40,
        parts: int = 2,
        seed: int = 0,
        tokenizer_fingerprint: str | None = None,
        length: int = LENGTH,
    ) -> Path:
        path = tmp_path_factory.mktemp("data")
        made = random_rows(rows, seed, length)
        write_dataset(path, tiny_model, made, parts, tokenizer_fingerprint, length)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_data(make_dataset: Callable[..., Path]) -> Path:
    """42 rows in 2 parts: with 4 rows per step, 11 steps, the last one short."""
    return make_dataset(rows=42)


def random_rows(count: int, seed: int, row_length: int = LENGTH) -> list[dict[str, Any]]:
    """Documents `bos a b a b ... eos` in which the next token can be learned; some rows are not full."""
    chance = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = row_length if number % 3 else row_length - 5
        cuts = np.sort(chance.choice(np.arange(4, length - 4, 3), size=2, replace=False))
        lengths = np.diff([0, *cuts, length]).tolist()
        documents = []
        for size in lengths:
            pattern = chance.integers(1, ROWS, size=3)
            documents.append(np.concatenate([[0], np.resize(pattern, size - 2), [0]])[:size])
        ids = np.concatenate(documents).astype(np.int32)
        labels = ids.copy()
        labels[1] = -100
        rows.append(
            {
                "input_ids": ids.tolist(),
                "labels": labels.tolist(),
                "seq_lengths": lengths,
                "seq_categories": [["zh", "en"][(number + i) % 2] for i in range(3)],
                "seq_bytes": [3 * n for n in lengths],
            }
        )
    return rows


def write_dataset(
    path: Path,
    model: Path,
    rows: Sequence[dict[str, Any]],
    parts: int,
    tokenizer_fingerprint: str | None = None,
    length: int = LENGTH,
) -> None:
    import datasets

    from llmforge import tokenizer
    from llmforge.steps import Manifest, fingerprint, manifest_path, write_manifest

    features = datasets.Features(
        {
            "input_ids": datasets.Sequence(datasets.Value("int32")),
            "labels": datasets.Sequence(datasets.Value("int32")),
            "seq_lengths": datasets.Sequence(datasets.Value("int32")),
            "seq_categories": datasets.Sequence(datasets.Value("string")),
            "seq_bytes": datasets.Sequence(datasets.Value("int32")),
        }
    )
    for part in range(parts):
        chosen = list(rows[part::parts])
        datasets.Dataset.from_list(chosen, features=features).save_to_disk(
            str(path / "arrow" / f"part-{part:05d}")
        )
    files = {
        file.relative_to(path).as_posix(): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    figures = [
        {
            "tokens": sum(len(row["input_ids"]) for row in rows[part::parts]),
            "valid_tokens": sum(len(row["input_ids"]) - 4 for row in rows[part::parts]),
            "bytes": sum(sum(row["seq_bytes"]) for row in rows[part::parts]),
        }
        for part in range(parts)
    ]
    outputs = {
        "categories": ["en", "zh"],
        "tokenizer": tokenizer_fingerprint or tokenizer.load(model).fingerprint,
        "max_length": length,
        "fingerprint": fingerprint(path),
        "files": files,
    }
    write_manifest(
        manifest_path(path),
        Manifest("prepare-data", {}, outputs=outputs, metrics={"parts": figures}),
    )


@pytest.fixture(scope="session")
def two_processes(warm: Warm) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`two_processes("--model", ...)` runs `llmforge train` in two ranks; what both say is in one text."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        done = warm.run([RANKS, "2", "train", *map(str, words)], {**os.environ, **TERMINAL}, 300)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def start_two(warm: Warm) -> Callable[..., list[Started]]:
    """`start_two(words, more)` starts two ranks by hand, so that no launcher helps; `more` are words of the second."""

    def start(words: Sequence[object], more: Sequence[object] = ()) -> list[Started]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        common = {
            **os.environ,
            **TERMINAL,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        return [
            warm.start(
                ["train", *map(str, words), *(map(str, more) if rank else ())],
                {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]

    return start


def train_options(values: dict[str, Any]) -> Any:
    """TrainOptions of `values`, of which some may be those of its groups."""
    from llmforge.train.options import TrainOptions

    own = dict(values)
    for entry in dataclasses.fields(TrainOptions):
        kind = entry.metadata.get("group")
        if kind is not None and entry.name not in own:
            names = own.keys() & {one.name for one in dataclasses.fields(kind)}
            own[entry.name] = kind(**entry.metadata["defaults"] | {name: own.pop(name) for name in names})
    return TrainOptions(**own)


@pytest.fixture
def train(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Callable[..., Any]:
    """`train(learning_rate=1e-2)` runs a training of the tiny model in this process and returns what
    `run_training` does.
    """
    from llmforge.train.run import run_training

    def run(**values: Any) -> Any:
        defaults = {
            "model": tiny_model,
            "data": [tiny_data],
            "output": tmp_path / "run",
            "mixed_precision": "fp32",
            "learning_rate": 1e-2,
        }
        return run_training(train_options({**defaults, **values}))

    return run


@pytest.fixture
def make_spiked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """60 rows of one easy pattern in 60 parts, so that their order is fixed; row 44 is random."""

    def make() -> Path:

        chance = np.random.default_rng(0)
        rows = []
        for number in range(60):
            ids = np.resize([5, 6, 7], LENGTH)
            if number == 44:
                ids = chance.integers(20, 300, LENGTH)
            ids[0] = 0
            rows.append(
                {
                    "input_ids": ids.tolist(),
                    "labels": ids.tolist(),
                    "seq_lengths": [LENGTH],
                    "seq_categories": ["zh"],
                    "seq_bytes": [LENGTH],
                }
            )
        path = tmp_path_factory.mktemp("spiked")
        write_dataset(path, tiny_model, rows, 60)
        return path

    return make
