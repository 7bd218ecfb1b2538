"""The files of a model directory besides its weights."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmforge.model.config import CONFIG, portable

GENERATION_CONFIG = "generation_config.json"
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


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_configs(output: Path, config: dict[str, Any], origin: Path) -> None:
    """Writes `config`, in a form that transformers 4 and 5 read alike, and the generation configuration of `origin`;
    one made of `config` if `origin` has none.
    """
    write_json(output / CONFIG, portable(config, origin))
    if (origin / GENERATION_CONFIG).is_file():
        shutil.copyfile(origin / GENERATION_CONFIG, output / GENERATION_CONFIG)
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
    """Copies licence texts, which go where the weights go."""
    _copy(origin, output, LEGAL_FILES)


def _copy(origin: Path, output: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for file in sorted(origin.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, output / file.name)
