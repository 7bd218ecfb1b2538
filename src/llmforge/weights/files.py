"""The files of a model directory besides its weights."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.weights.config import CONFIG, portable, read_config

GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model"  # of peft
ADAPTER_FOLDER, ADAPTER_STEP = (
    "adapter",
    "train-adapter",
)  # beside the weights of a training, and in its manifest
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
LEGAL_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
CODE_FILES = ("*.py",)
# Weights in any format, state of trainings, and what would make a reader add to the weights beside it or take others.
NOT_BESIDE_OTHER_WEIGHTS = (
    *(
        "*.safetensors",
        "*.bin",
        "*.pt",
        "*.pth",
        "*.gguf",
        "*.ggml",
        "*.h5",
        "*.msgpack",
        "*.onnx",
        "*.ckpt",
        "*.npz",
        "*.ot",
    ),
    *("*.index.json", "*.index.*.json", ADAPTER_CONFIG, "delta.json", "llmforge.json", ".*"),
)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_configs(output: Path, config: dict[str, Any], origin: Path) -> None:
    """Writes `config`, in a form that transformers 4 and 5 read alike, and the generation configuration of `origin`;
    one made of `config` if `origin` has none.
    """
    write_json(output / CONFIG, portable(config, origin))
    if (origin / GENERATION_CONFIG).is_file():
        copy_file(origin / GENERATION_CONFIG, output)
        return
    ids = {
        key: config[key]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if config.get(key) is not None
    }
    write_json(output / GENERATION_CONFIG, {"_from_model_config": True, **ids})


def copy_tokenizer(origin: Path, output: Path) -> None:
    """Copies the tokenizer's own files."""
    _copy(origin, output, TOKENIZER_FILES)


def copy_legal_files(origin: Path, output: Path) -> None:
    """Copies license texts, which go where the weights go."""
    _copy(origin, output, LEGAL_FILES)


def copy_code(origin: Path, output: Path) -> None:
    """Copies the Python files of a model whose configuration names some (`auto_map`). None of them is run."""
    if read_config(origin).get("auto_map"):
        _copy(origin, output, CODE_FILES)


def side_files(origin: Path) -> list[Path]:
    """Every file of a model directory but weights, their indices and records; `UserError` as `copy_file` raises it."""
    found = [
        file
        for file in sorted(origin.iterdir())
        if file.is_file() and not any(file.match(pattern) for pattern in NOT_BESIDE_OTHER_WEIGHTS)
    ]
    for file in found:
        refuse_outside(file)
    return found


def copy_side_files(origin: Path, output: Path) -> None:
    """Copies `side_files`."""
    for file in side_files(origin):
        copy_file(file, output)


def copy_file(file: Path, output: Path) -> None:
    """Copies `file` into the directory `output`, a link as the file that it leads to. `UserError` for one that leads
    out of its directory.
    """
    refuse_outside(file)
    shutil.copyfile(file, output / file.name)


def refuse_outside(file: Path) -> None:
    """Raises `UserError` for a link that leads out of the directory of `file`, as what is copied may be published. In the
    cache of the Hub, where all files are links, it may lead to the other folders of the same repository.
    """
    home = file.parent.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    if not file.resolve().is_relative_to(home):
        raise UserError(
            f"{file} is a link to {file.resolve()}, outside its directory; replace the link by "
            "the file, or remove it."
        )


def _copy(origin: Path, output: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for file in sorted(origin.glob(pattern)):
            if file.is_file():
                copy_file(file, output)
