"""A model directory as one object, which is handed on instead of its path: each fact of it is read once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmforge import tokenizer
from llmforge.steps import fingerprint
from llmforge.tokenizer import Tokenizer
from llmforge.weights.architecture import check_supported, find_vocabulary_tensors
from llmforge.weights.config import make_config, read_config
from llmforge.weights.files import side_files
from llmforge.weights.read import Weights, open_weights
from llmforge.weights.vocabulary import Vocabulary, fitting, recorded


@dataclass(frozen=True)
class ModelDirectory:
    """The Hugging Face model directory `path`. Nothing is read before it is asked for, and of the weights only headers,
    but for `fingerprint`.

    Each property raises `UserError` where what it reads is missing, damaged, or not supported by training.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def stated(self) -> dict[str, Any]:
        """`config.json` as in the file."""
        return read_config(self.path)

    @cached_property
    def config(self) -> Any:
        """transformers' configuration, of a causal language model of text alone. No code of the directory is run."""
        check_supported(self.stated, self.path)
        return make_config(self.stated, self.path)

    @cached_property
    def weights(self) -> Weights:
        return open_weights(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """Of every byte of every file (`llmforge.steps.fingerprint`)."""
        return fingerprint(self.path)

    @cached_property
    def side_files(self) -> dict[str, bytes]:
        """What goes into every checkpoint of the model, by file name: all but weights, indices and records."""
        return {file.name: file.read_bytes() for file in side_files(self.path)}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizer.load(self.path)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return recorded(self.path) or fitting(
            self.path, self.tokenizer.size, find_vocabulary_tensors(self.weights, self.stated)
        )
