"""Source-shielded updates (arXiv 2512.04844): the input columns of each matrix that matter most to text of the source are
frozen.

A column j of a matrix W has the score sum over i of |W_ij| x ||x_j||, where ||x_j|| is the L2 norm of the input j over the
tokens of the text (the importance of Wanda, arXiv 2306.11695). Embeddings and head are not protected.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from llmforge.backends.base import MicroBatch, World
from llmforge.backends.common.documents import Documents
from llmforge.backends.common.model import load_model, own_memory
from llmforge.backends.common.processes import agree
from llmforge.backends.common.trainable import linear_matrices
from llmforge.errors import UserError
from llmforge.weights.directory import ModelDirectory


@dataclass(frozen=True)
class Shield:
    """`kept` has float32 (inputs,) for the weight of each protected matrix by its name: 0 for frozen columns, else 1."""

    kept: dict[str, torch.Tensor]

    @torch.no_grad()
    def clear(self, gradients: dict[str, torch.Tensor]) -> None:
        """Clears what is frozen of `gradients` (rows of this rank, inputs)."""
        for name, gradient in gradients.items():
            gradient.mul_(self.kept[name])


def make_shield(
    names: dict[str, int],
    source: ModelDirectory,
    kernel: str,
    batches: Iterable[MicroBatch] | None,
    share: float,
    device: torch.device,
    world: World,
) -> Shield:
    """Collective: protects `share` of the columns of the matrices `names`, which have so many. Rank 0 loads the model `source`
    whole for it, and nothing of it stays. Where `batches` is None, a checkpoint fills in which columns are frozen.
    """
    kept = {name: torch.ones(inputs, device=device) for name, inputs in names.items()}
    if batches is None:
        return Shield(kept)
    problem: Exception | None = None
    if world.is_main:
        try:
            for name, score in scores(source, kernel, batches, device, set(names)).items():
                frozen = score.argsort(descending=True, stable=True)[: round(share * len(score))]
                kept[name][frozen] = 0
        except Exception as error:
            problem = error
    if world.size > 1 and not agree(problem is None, None) and problem is None:
        raise UserError("rank 0 could not compute what --protect-source freezes; its message says why.")
    if problem:
        raise problem
    if world.size > 1:
        for name in sorted(kept):
            dist.broadcast(kept[name], 0)
    return Shield(kept)


@torch.no_grad()
def scores(
    source: ModelDirectory, kernel: str, batches: Iterable[MicroBatch], device: torch.device, names: set[str]
) -> dict[str, torch.Tensor]:
    """float64 (inputs,) for each matrix of `names`, by the texts of `batches`, in float32."""
    causal = load_model(source, kernel, torch.float32)
    if device.type == "cpu":
        own_memory(causal)
    causal = causal.eval().to(device)
    matrices = {name: module for name, module in linear_matrices(causal).items() if name in names}
    squares: dict[str, torch.Tensor] = {}

    def record(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            total = inputs[0].flatten(0, -2).double().square().sum(dim=0)
            squares[name] = squares[name] + total if name in squares else total

        return hook

    for name, module in matrices.items():
        module.register_forward_pre_hook(record(name))
    for batch in batches:
        causal.base_model(
            input_ids=batch.input_ids.to(device),
            position_ids=batch.positions.to(device),
            use_cache=False,
            documents=Documents(batch.lengths, device, batch.padded),
        )
    # A matrix that is called in another way is left alone.
    return {
        name: matrices[name].weight.double().abs().sum(dim=0) * square.sqrt()
        for name, square in squares.items()
    }
