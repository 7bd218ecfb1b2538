"""A trained weight as one rank holds it: a flat range of (its part in tensor parallelism of) the whole tensor.

Every plugin cuts weights in its own way. Written as flat ranges, they are all masked, measured, saved and restored
by the same few lines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Part:
    """`name` and `shape` are the whole weight's; `dim` is the dimension that tensor parallelism cut, or None.

    `master()` is the float32 range that the optimizer updates, (n,) elements from `start` of the local tensor on;
    it may end in padding. `gradient()` is the same range of the gradient, averaged over data ranks, in the dtype
    of training, or None. `key` is what the optimizer keeps the moments under. `counts` is True on one rank for
    every element, so that sums over all ranks count each once.
    """

    name: str
    shape: torch.Size
    dim: int | None
    start: int
    key: torch.Tensor
    master: Callable[[], torch.Tensor]
    gradient: Callable[[], torch.Tensor | None]
    counts: bool


@dataclass(frozen=True)
class Cut:
    """How the ranks of a run share weights.

    `tensor` is the group of tensor parallelism or None; `shards` the group whose ranks hold ranges of one tensor,
    None where each holds all of it; `owner` the rank that writes and reads the state for all that hold the same.
    """

    device: torch.device
    tensor: Any = None
    shards: Any = None
    owner: int = 0

    @property
    def tensor_rank(self) -> int:
        return dist.get_rank(self.tensor) if self.tensor is not None else 0

    @property
    def tensor_size(self) -> int:
        return dist.get_world_size(self.tensor) if self.tensor is not None else 1

    def local_shape(self, part: Part) -> list[int]:
        """The shape of the tensor of which `part` is a range."""
        shape = list(part.shape)
        if part.dim is not None:
            shape[part.dim] //= self.tensor_size
        return shape

    def of(self, part: Part, whole: torch.Tensor) -> torch.Tensor:
        """The range of `whole` that `part` holds, flat, with zeros where the part is padded."""
        if part.dim is not None:
            whole = whole.chunk(self.tensor_size, part.dim)[self.tensor_rank]
        count = part.master().numel()
        found = whole.reshape(-1)[part.start : part.start + count]
        return torch.nn.functional.pad(found, (0, count - found.numel()))

    def gather(self, part: Part) -> torch.Tensor:
        """The whole weight in float32; collective over both groups, complete on their first ranks."""
        master = part.master().to(self.device)
        local = self.local_shape(part)
        size = torch.Size(local).numel()
        whole = master
        if self.shards is not None:
            # Ranges differ in length from rank to rank, and end in padding: it lies beyond the tensor.
            padded = -(-size // dist.get_world_size(self.shards)) * dist.get_world_size(self.shards)
            whole = torch.zeros(padded, dtype=torch.float32, device=self.device)
            whole[part.start : part.start + master.numel()] = master
            dist.reduce(whole, dist.get_global_rank(self.shards, 0), group=self.shards)
        whole = whole[:size].view(local)
        if part.dim is not None and self.tensor_size > 1:
            shares = [torch.empty_like(whole) for _ in range(self.tensor_size)]
            dist.all_gather(shares, whole.contiguous(), group=self.tensor)
            whole = torch.cat(shares, dim=part.dim)
        return whole

    def rows(self, part: Part) -> tuple[int, int, int]:
        """For a matrix of embeddings: the number of its first local row, its local rows, and their width."""
        local, width = self.local_shape(part)
        return (self.tensor_rank * local if part.dim == 0 else 0), local, width

    def clear_rows(self, part: Part, gradient: torch.Tensor, kept: tuple[int, int]) -> None:
        """Sets the gradients of all rows but `kept` (half-open, of the whole matrix) to 0, in place."""
        first, _, width = self.rows(part)
        offset = first * width + part.start
        gradient[: max(0, kept[0] * width - offset)] = 0
        gradient[max(0, kept[1] * width - offset) :] = 0

    def row_squares(self, part: Part, count: int) -> torch.Tensor:
        """float64 (count,): the sums of squares, in this rank's range, of the first `count` rows of the matrix."""
        first, local, width = self.rows(part)
        sums = torch.zeros(count, dtype=torch.float64)
        values = part.master()[: max(0, local * width - part.start)]
        # The range may begin and end inside a row.
        lead = min(-part.start % width, values.numel())
        body = (values.numel() - lead) // width
        pieces = (
            (part.start // width, values[:lead][None]),
            ((part.start + lead) // width, values[lead : lead + body * width].view(body, width)),
            ((part.start + lead) // width + body, values[lead + body * width :][None]),
        )
        for row, piece in pieces:
            if not piece.numel():
                continue
            squares = torch.linalg.vector_norm(piece.float(), dim=1).double().square().cpu()
            used = squares[: max(0, count - first - row)]
            sums[first + row : first + row + len(used)] += used
        return sums
