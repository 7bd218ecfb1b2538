"""Where the documents of packed rows lie, as attention kernels want to know it."""

from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from llmforge.backends.common.transfer import to_device


class Documents:
    """The lengths of the documents of each row of a micro-batch, and what the kernels want to know of them.

    `padded[i]`: the last document of row i is padding (none are where it is left out). An object and no tuple, so
    that compiled layers hand it on without looking inside.
    """

    def __init__(
        self,
        lengths: tuple[tuple[int, ...], ...],
        device: torch.device,
        padded: tuple[bool, ...] = (),
    ) -> None:
        self.sizes = [n for row in lengths for n in row]
        self.rows, self.device, self.padded = lengths, device, padded or (False,) * len(lengths)

    @property
    def one_a_row(self) -> bool:
        """Whether no row has two documents; padding is none."""
        return all(len(row) - padded < 2 for row, padded in zip(self.rows, self.padded, strict=True))

    @cached_property
    def longest(self) -> int:
        return max(self.sizes)

    @cached_property
    def bounds(self) -> torch.Tensor:
        """int32 (documents + 1,): where documents begin in the rows laid end to end."""
        return to_device(torch.tensor([0, *accumulate(self.sizes)], dtype=torch.int32), self.device)

    @cached_property
    def _block_masks(self) -> dict[int | None, Any]:
        return {}

    def block_mask(self, window: int | None = None) -> Any:
        """The mask of flex attention: causal, inside a document, and at most `window` keys."""
        from torch.nn.attention.flex_attention import create_block_mask

        if window in self._block_masks:
            return self._block_masks[window]
        length = sum(self.rows[0])
        documents = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in self.rows]
        numbers = to_device(torch.stack(documents), self.device)
        reach = window or length

        def visible(row: Any, _head: Any, query: Any, key: Any) -> Any:
            near = (query >= key) & (query - key < reach)
            return near & (numbers[row, query] == numbers[row, key])

        mask = create_block_mask(visible, len(self.rows), None, length, length, device=str(self.device))
        self._block_masks[window] = mask
        return mask


def one_line(states: torch.Tensor) -> torch.Tensor:
    """(rows, heads, length, width) as (rows * length, heads, width)."""
    return states.transpose(1, 2).flatten(0, 1)
