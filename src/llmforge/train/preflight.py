"""What is checked before the first step, because it would only show hours later."""

from pathlib import Path

import numpy as np
import torch

from llmforge import hub
from llmforge.backends.build import device_memory
from llmforge.backends.common.devices import gpu_device
from llmforge.console import warn
from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UsageError, UserError
from llmforge.train.mixture import check_weights
from llmforge.train.options import TrainOptions
from llmforge.weights.absent import not_a_model
from llmforge.weights.architecture import check_length
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.vocabulary import Vocabulary

ROWS_LOOKED_AT = 1000


def check_inputs(
    config: TrainOptions, data: PackedDataset, tokenizer: str, vocabulary: Vocabulary, origin: Path
) -> None:
    """That dataset, flags and the model `origin`, whose tokenizer has the fingerprint `tokenizer`, go together."""
    if data.tokenizer_fingerprint != tokenizer:
        raise UserError(
            f"{config.data[0]} was prepared with another tokenizer than that of {origin}; "
            f"run llmforge prepare-data with --tokenizer {origin}."
        )
    if config.max_length not in (None, data.max_length):
        raise UsageError(
            f"--max-length {config.max_length} contradicts --data {config.data[0]}, "
            f"whose rows have {data.max_length} tokens."
        )
    if not len(data):
        raise UserError(f"{config.data[0]} has no rows.")
    if weights := config.weights():
        for mix in (weights, *config.windows().values()):
            check_weights(mix, data)
    if "new-embeddings" in config.trainable and vocabulary.size == vocabulary.source:
        raise UserError(
            f"--trainable {config.trainable}: {origin} has no new tokens; use --trainable embeddings."
        )
    if (factor := config.rates.new_embedding_lr) is not None and vocabulary.size == vocabulary.source:
        raise UserError(f"--new-embedding-lr {factor:g}: {origin} has no new tokens; use --embedding-lr.")


def find_teacher(config: TrainOptions, source: ModelDirectory, length: int) -> ModelDirectory | None:
    """The model that --distill-from-source asks for, after making sure that it reads rows of `length` tokens and that the
    old tokens of the trained model, which starts as `source`, are its own.
    """
    if config.retention.distill_from_source is None:
        return None
    if config.retention.source_model is None:
        return source
    teacher, old = ModelDirectory(hub.local(config.retention.source_model)), source.vocabulary.source
    if not (teacher.path / "config.json").is_file():
        raise not_a_model(teacher.path, "--source-model")
    check_length(teacher.config, teacher.path, length)
    ours, theirs = source.tokenizer.pieces()[:old], teacher.tokenizer.pieces()[:old]
    if ours != theirs or teacher.vocabulary.size < old:
        number = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
        raise UserError(
            f"--source-model {teacher}: the tokenizer of {source} does not extend its tokenizer (id {number} of the "
            f"{old:,} old ids is another token); give the model that {source} was resized from."
        )
    return teacher


def check_rows(data: PackedDataset, vocabulary: Vocabulary, dataset: object) -> None:
    """A sample of rows, evenly spread: ids inside the vocabulary, and something to learn."""
    numbers = np.unique(np.linspace(0, len(data) - 1, min(len(data), ROWS_LOOKED_AT)).astype(np.int64))
    masked = 0
    for number, row in zip(numbers, data.rows(numbers), strict=True):
        if (highest := int(row.input_ids.max())) >= vocabulary.size:
            raise UserError(
                f"{dataset}: row {number} contains id {highest}, but the model has {vocabulary.size} tokens; "
                "prepare the data with the model's own tokenizer."
            )
        masked += bool((row.labels[1:] == -100).all())
    if masked == len(numbers):
        raise UserError(
            f"{dataset}: every label is masked, so there is nothing to learn; check source and target of the documents."
        )
    if masked:
        warn(f"{dataset}: in {masked} of {len(numbers)} sampled rows, every label is masked.")


def check_embeddings(norms: torch.Tensor, vocabulary: Vocabulary, model: object) -> None:
    """`norms` (size,) of the input embeddings: a row of zeros has an infinite gradient behind an RMS norm."""
    if not bool(torch.isfinite(norms).all()):
        raise UserError(
            f"{model}: the embeddings contain NaN or infinity; download or train the model again."
        )
    zero = (norms == 0).nonzero().flatten().tolist()
    if new := [i for i in zero if i >= vocabulary.source]:
        raise UserError(
            f"{model}: {len(new)} new tokens (the first is {new[0]}) have embeddings of zeros, which cannot be "
            "trained; resize the model with llmforge init-model."
        )
    if zero:
        warn(f"{model}: {len(zero)} old tokens (the first is {zero[0]}) have embeddings of zeros.")


def peak_flops(precision: str, processes: int, device: torch.device) -> float | None:
    """What the data sheet gives all processes per second; None for a device that is not known."""
    if device.type != "cuda":
        return None
    gpu = gpu_device(torch.cuda.get_device_name(device), device_memory(device))
    return gpu.peak(precision) * processes if gpu else None
