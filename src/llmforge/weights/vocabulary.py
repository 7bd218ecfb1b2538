"""How many rows of a model are old, new and padding, and whether a tokenizer fits them."""

from dataclasses import asdict, dataclass
from pathlib import Path

from llmforge.errors import UserError
from llmforge.steps import manifest_path, read_manifest
from llmforge.tokenizer import Tokenizer, load
from llmforge.weights.architecture import VocabularyTensors, find_vocabulary_tensors
from llmforge.weights.config import read_config
from llmforge.weights.read import open_weights


@dataclass(frozen=True)
class Vocabulary:
    """The rows of an embedding: ids below `source` are old, `source` to `size` new, rows `size` to `padded`
    padding.
    """

    source: int
    size: int
    padded: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def vocabulary(model_dir: Path) -> Vocabulary:
    """The vocabulary of a model directory, from its manifest, or from its tokenizer and weights where it has
    none.

    Reads headers only. Raises `UserError` if the model has fewer rows than its tokenizer has ids.
    """
    return recorded(model_dir) or fitting(
        model_dir,
        load(model_dir).size,
        find_vocabulary_tensors(open_weights(model_dir), read_config(model_dir)),
    )


def check_fits(model_dir: Path, tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of `model_dir`, after making sure that `tokenizer` is the one that it was made for.

    Raises `UserError` if the model was resized for another tokenizer, or has fewer rows than `tokenizer` has
    ids.
    """
    own = read_manifest(model_dir).outputs.get("tokenizer") if recorded(model_dir) else None
    if own is not None and own != tokenizer.fingerprint:
        raise UserError(
            f"the model {model_dir} has another tokenizer than {tokenizer.directory}; "
            f"use the tokenizer in {model_dir}, or resize the model for this one with llmforge init-model."
        )
    if own is None and tokenizer.directory.resolve() != model_dir.resolve():
        inside = load(model_dir)
        if inside.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the model {model_dir} has another tokenizer than {tokenizer.directory}; "
                f"use the tokenizer in {model_dir}, or resize the model for this one with llmforge init-model."
            )
    return vocabulary(model_dir)


def recorded(model_dir: Path) -> Vocabulary | None:
    """The vocabulary of a model that llmforge wrote, from its manifest."""
    if not model_dir.is_dir() or not manifest_path(model_dir).is_file():
        return None
    values = read_manifest(model_dir).outputs.get("vocabulary")
    return Vocabulary(**values) if values else None


def fitting(model_dir: Path, size: int, tensors: VocabularyTensors) -> Vocabulary:
    """The vocabulary of another model, whose tokenizer has `size` ids; `UserError` if it has fewer rows."""
    if tensors.rows < size:
        raise UserError(
            f"{model_dir} has {tensors.rows:,} embedding rows, but its tokenizer has {size:,} ids; "
            "it is not the tokenizer of this model, or the model was not resized for it; run llmforge init-model."
        )
    return Vocabulary(size, size, tensors.rows)
