"""What is looked at before the first step, because it would only show hours later."""

import numpy as np
import torch

from llmforge.console import warn
from llmforge.data.dataset import PackedDataset
from llmforge.errors import UserError
from llmforge.model import Vocabulary

ROWS_LOOKED_AT = 1000


def check_rows(data: PackedDataset, vocabulary: Vocabulary, dataset: object) -> None:
    """A sample of rows, evenly spread: ids inside the vocabulary, and something to learn."""
    numbers = np.unique(np.linspace(0, len(data) - 1, min(len(data), ROWS_LOOKED_AT)).astype(np.int64))
    masked = 0
    for number, row in zip(numbers, data.rows(numbers), strict=True):
        if (highest := int(row.input_ids.max())) >= vocabulary.size:
            raise UserError(
                f"{dataset}: row {number} holds id {highest}, but the model has {vocabulary.size} tokens; "
                "prepare the data with the model's own tokenizer."
            )
        masked += bool((row.labels[1:] == -100).all())
    if masked == len(numbers):
        raise UserError(
            f"{dataset}: every label is masked, there is nothing to learn; check source and target."
        )
    if masked:
        warn(f"{dataset}: in {masked} of {len(numbers)} rows looked at, every label is masked.")


def check_embeddings(norms: torch.Tensor, vocabulary: Vocabulary, model: object) -> None:
    """`norms` (size,) of the input embeddings: a row of zeros has an infinite gradient behind an RMS norm."""
    if not bool(torch.isfinite(norms).all()):
        raise UserError(f"{model}: embeddings are not finite; the model is damaged.")
    zero = (norms == 0).nonzero().flatten().tolist()
    if new := [i for i in zero if i >= vocabulary.source]:
        raise UserError(
            f"{model}: {len(new)} new tokens (the first is {new[0]}) have embeddings of zeros, which cannot be "
            "trained; grow the model with llmforge init-model."
        )
    if zero:
        warn(f"{model}: {len(zero)} old tokens (the first is {zero[0]}) have embeddings of zeros.")


def check_memory(needed: int, free: int) -> None:
    if needed > free:
        warn(
            f"a step is estimated to need {needed / 1e9:.1f} GB more per process, and {free / 1e9:.1f} GB are free; "
            "--use-grad-checkpoint, a smaller --micro-batch-size and --plugin fsdp need less."
        )
