"""Rows that the layers take for the old spelling of a token: its hidden states, matched."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmforge.console import progress
from llmforge.embedding.distillation.snippets import Batch
from llmforge.embedding.distillation.source_model import SourceModel
from llmforge.embedding.distillation.state import Saved

WARM_UP = 4  # steps
BETAS = (0.9, 0.95)
SMALL = 1e-3  # of the mean variance, added to that of each dimension


@dataclass(frozen=True)
class InputSettings:
    """`layers` whose states are compared; `rate`: the learning rate; each batch is shown `epochs` times."""

    layers: int
    rate: float
    epochs: int
    seed: int


def distill_inputs(
    model: SourceModel,
    batches: Sequence[Batch],
    wanted: "Wanted",
    rows: torch.Tensor,
    settings: InputSettings,
    work: Path,
) -> tuple[torch.Tensor, list[float]]:
    """`rows` [new tokens, width] float32, trained; and the mean distance of the states by epoch.

    With x the resized model's state after `layers` layers at the end of a token, y the source's at the same place in the text,
    and v their variance in each dimension over the places of the first batch, what falls is the mean of (x - y)^2 / v
    (Dobler et al., "Token Distillation", arXiv 2505.20133, take the mean of (x - y)^2; but the variance of some dimensions is
    a thousand times that of others). Compared are all places from the first new token of a snippet on. The states y are
    computed in the first epoch and kept (`wanted`). Adam, linear warm-up and decay; nothing but these rows gets a gradient.
    Goes on from what an earlier call left in `work`, to the same bits.
    """
    saved = Saved(work, "input")
    scale = wanted.scale()
    first = second = torch.zeros_like(rows)
    done, sums = 0, [0.0] * settings.epochs
    if found := saved.load():
        tensors, figures = found
        rows, first, second = (tensors[name].to(rows.device) for name in ("rows", "first", "second"))
        done, sums = int(figures["done"]), list(figures["sums"])
    steps = settings.epochs * len(batches)
    with progress("distill: hidden states", steps, "steps") as advance:
        advance(done)
        for step in range(done, steps):
            epoch, number = divmod(step, len(batches))
            order = np.random.default_rng([settings.seed, epoch]).permutation(len(batches))
            batch = int(order[number])
            gradient, loss = _gradient(model, batches[batch], wanted(batch), scale, rows, settings.layers)
            sums[epoch] += loss
            first = torch.lerp(gradient, first, BETAS[0])
            second = torch.lerp(gradient.square(), second, BETAS[1])
            rate = settings.rate * min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
            # Not in place, so that a signal in between leaves a whole state.
            rows = rows - rate * (first / (1 - BETAS[0] ** (step + 1))) / (
                (second / (1 - BETAS[1] ** (step + 1))).sqrt() + 1e-12
            )
            saved.save(
                {"rows": rows, "first": first, "second": second},
                {"done": step + 1, "sums": sums},
                now=step + 1 == steps,
            )
            advance(1, f"distance {loss:.3f}")
    return rows, [total / len(batches) for total in sums]


def _gradient(
    model: SourceModel,
    batch: Batch,
    wanted: torch.Tensor,
    scale: torch.Tensor,
    rows: torch.Tensor,
    layers: int,
) -> tuple[torch.Tensor, float]:
    """The gradient of the mean distance to the states `wanted` by `rows`, and that distance."""
    leaf = rows.clone().requires_grad_(True)
    states = model.states(batch.new_ids, layers, leaf)[batch.row, batch.new_column].float()
    loss = ((states - wanted).square() * scale).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient, float(loss.detach())


def sensitivity(
    model: SourceModel,
    batches: Sequence[Batch],
    rows: torch.Tensor,
    scale: torch.Tensor,
    layers: int,
    seed: int,
) -> torch.Tensor:
    """How the distance of the states grows with what is added to one new row: C [width, width], as in d C d for small d.

    C is the mean, over the places of `batches` with new tokens, of J^T V J: J is the derivative of all states behind by
    the row, and V the weight of each dimension in the distance. Estimated by one random vector a batch (Hutchinson).
    """
    generator = torch.Generator().manual_seed(seed)
    total, places = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device), 0
    for batch in batches:
        leaf = rows.clone().requires_grad_(True)
        states = model.states(batch.new_ids, layers, leaf)[batch.row, batch.new_column].float()
        signs = torch.randint(0, 2, states.shape, generator=generator).to(states) * 2 - 1
        (gradient,) = torch.autograd.grad((states * signs * (scale / states.shape[1]).sqrt()).sum(), leaf)
        total += gradient.T @ gradient
        places += int((batch.new_ids >= model.size).sum())
    return total / places


class Wanted:
    """The source's states of each batch, computed when they are first asked for and then read from a file of `work`."""

    def __init__(self, model: SourceModel, batches: Sequence[Batch], layers: int, work: Path) -> None:
        self.model, self.batches, self.layers = model, batches, layers
        self.offsets = np.cumsum([0, *(len(batch.row) for batch in batches)])
        self.known = np.zeros(len(batches), np.bool_)
        self.file = work / "states.f32"
        self.memory: np.memmap | None = None

    def __call__(self, number: int) -> torch.Tensor:
        start, stop = self.offsets[number], self.offsets[number + 1]
        if self.memory is not None and self.known[number]:
            return torch.from_numpy(self.memory[start:stop]).to(self.model.device)
        batch = self.batches[number]
        with torch.no_grad():
            states = self.model.states(batch.old_ids, self.layers)[batch.row, batch.old_column].float()
        if self.memory is None:
            shape = (int(self.offsets[-1]), states.shape[1])
            self.memory = np.memmap(self.file, np.float32, "w+", shape=shape)
        self.memory[start:stop] = states.cpu().numpy()
        self.known[number] = True
        return states

    def scale(self) -> torch.Tensor:
        """1 / variance of each dimension, over the first batch."""
        variance = self(0).var(dim=0)
        return 1 / (variance + SMALL * variance.mean())
