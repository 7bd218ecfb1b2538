"""The trained weights of a run, wherever ranks hold their parts: measured, gathered on the main rank, read back."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from llmforge.backends.base import World
from llmforge.backends.colossalai.parts import Cut, Part
from llmforge.backends.common import storage
from llmforge.backends.common.step import copy_to_cpu
from llmforge.backends.common.trainable import embedding_parameters


@dataclass(frozen=True)
class Names:
    """A model's weights before a plugin cuts anything.

    Tied tensors go under their first name, which `first` has for every name. `saved` are the names in a model
    directory, `embeddings` those of the matrices of embeddings, `trains_embeddings` whether one of these is trained.
    """

    first: dict[str, str]
    shapes: dict[str, torch.Size]
    saved: list[str]
    embeddings: list[str]
    trains_embeddings: bool

    @staticmethod
    def of(model: Any) -> "Names":
        every = list(model.named_parameters(remove_duplicate=False))
        by_tensor = {id(p): name for name, p in reversed(every)}
        first = {name: by_tensor[id(p)] for name, p in every}
        embeddings = embedding_parameters(model)
        return Names(
            first=first,
            shapes={name: p.shape for name, p in every},
            saved=list(storage.unique_state(model)),
            embeddings=list(dict.fromkeys(first[name] for name in embeddings)),
            trains_embeddings=any(p.requires_grad for p in embeddings.values()),
        )


class Weights:
    """`parts` are this rank's, in the same order on ranks that share them; `host` is a group for tensors on the CPU."""

    def __init__(self, names: Names, parts: list[Part], cut: Cut, world: World, host: Any) -> None:
        self.names, self.parts, self.cut, self.world, self.host = names, parts, cut, world, host
        first = cut.tensor_rank == 0 and (cut.shards is None or dist.get_rank(cut.shards) == 0)
        mine = [(part.name, list(part.shape)) for part in parts if first and part.counts]
        # For every rank, the weights that it hands to the main rank.
        self.handed: list[Any] = [None] * world.size
        dist.all_gather_object(self.handed, mine)

    def count(self) -> int:
        """Number of trained elements, each counted once."""
        number = torch.tensor([sum(self._size(part) for part in self.parts if part.counts)])
        dist.all_reduce(number, group=self.host)
        return int(number)

    def _size(self, part: Part) -> int:
        local = torch.Size(self.cut.local_shape(part)).numel()
        return max(0, min(part.master().numel(), local - part.start))

    def gradient_square(self, rows: tuple[int, int] | None) -> torch.Tensor:
        """float64 (1,) on the device: the square of the L2 norm over what is trained; the gradients of embeddings are
        cleared first in all rows but `rows`.
        """
        square = torch.zeros(1, dtype=torch.float64, device=self.cut.device)
        for part in self.parts:
            gradient = part.gradient()
            if gradient is None:
                continue
            if rows is not None and self.names.first.get(part.name) in self.names.embeddings:
                self.cut.clear_rows(part, gradient, rows)
            if part.counts:
                norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
                square += norm.to(self.cut.device, torch.float64).square()
        dist.all_reduce(square)
        return square

    def embedding_norms(self, count: int) -> torch.Tensor:
        """float64 (count,): L2 norms of the first rows of the input embeddings, in float32."""
        squares = torch.zeros(count, dtype=torch.float64)
        for part in self.parts:
            if self.names.first.get(part.name) == self.names.embeddings[0] and part.counts:
                squares += self.cut.row_squares(part, count)
        dist.all_reduce(squares, group=self.host)
        return squares.sqrt()

    def gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Collective: every trained weight in float32 on the CPU of the main rank; nothing elsewhere."""
        mine = {name for name, _ in self.handed[self.world.rank]}
        kept = []
        for part in self.parts:
            whole = self.cut.gather(part)
            if part.name in mine:
                kept.append((part.name, copy_to_cpu(whole)))
        if self.world.is_main:
            yield from kept
        for rank, names in enumerate(self.handed[1:], start=1):
            for number, (name, shape) in enumerate(names):
                if self.world.is_main:
                    received = torch.empty(shape, dtype=torch.float32)
                    dist.recv(received, src=rank, group=self.host)
                    yield name, received
                elif self.world.rank == rank:
                    dist.send(kept[number][1], dst=0, group=self.host)

    @torch.no_grad()
    def read(self, weights: dict[str, torch.Tensor]) -> None:
        """Fills the parts from the tensors of a model directory."""
        for part in self.parts:
            name = self.names.first.get(part.name)
            if name in weights:
                part.master().copy_(self.cut.of(part, weights[name]))

    def untrained(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """On the main rank, what is not trained, as the directory has it: here it was rounded. Copied, as the files
        may be cut, changed or deleted while the run continues.
        """
        if not self.world.is_main:
            return {}
        trained = {name for names in self.handed for name, _ in names}
        return {
            name: weights[name].to(torch.float32, copy=True)
            for name in self.names.saved
            if name not in trained
        }
