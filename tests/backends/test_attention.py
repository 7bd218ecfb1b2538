"""Attention inside documents: what a row-mate holds does not matter, and every kernel that runs here
agrees.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.backends.common.attention import by_flex, by_sdpa, choose
from llmforge.backends.common.documents import Documents
from llmforge.errors import UserError

CPU = torch.device("cpu")


def masked_reference(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[tuple[int, ...], ...]
) -> torch.Tensor:
    """Softmax attention with a block-diagonal causal mask, written out."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    numbers = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    )
    size = query.shape[2]
    visible = (numbers[:, :, None] == numbers[:, None, :]) & torch.ones(size, size, dtype=torch.bool).tril()
    scores = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).masked_fill(~visible[:, None], -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


LENGTHS = st.sampled_from([((4, 5, 7), (16,)), ((1, 15), (8, 8)), ((16,), (16,)), ((2, 2, 2, 10), (15, 1))])


@settings(deadline=None, max_examples=20)
@given(lengths=LENGTHS, key_heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 100))
def test_sdpa_is_block_diagonal_causal_attention(
    lengths: tuple[tuple[int, ...], ...], key_heads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    query = torch.randn(2, 4, 16, 8, requires_grad=True)
    key, value = (torch.randn(2, key_heads, 16, 8, requires_grad=True) for _ in range(2))
    module = torch.nn.Module()
    got, _ = by_sdpa(module, query, key, value, None, documents=Documents(lengths, CPU))
    expected = masked_reference(query, key, value, lengths)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad((got * weight).sum(), (query, key, value)),
        torch.autograd.grad((expected * weight).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_flex_attention_agrees(key_heads: int) -> None:
    torch.manual_seed(0)
    lengths = ((40, 50, 38), (128,))
    query = torch.randn(2, 4, 128, 16)
    key, value = (torch.randn(2, key_heads, 128, 16) for _ in range(2))
    with torch.no_grad():
        got, _ = by_flex(torch.nn.Module(), query, key, value, None, documents=Documents(lengths, CPU))
    torch.testing.assert_close(got, masked_reference(query, key, value, lengths), atol=1e-5, rtol=1e-5)


def test_a_document_gives_the_same_bits_whatever_its_row_mates_are() -> None:
    torch.manual_seed(0)
    states = [torch.randn(1, 2, 24, 8) for _ in range(3)]
    others = [torch.cat([torch.randn(1, 2, 10, 8), state[:, :, 10:]], dim=2) for state in states]
    module = torch.nn.Module()
    one, _ = by_sdpa(module, *states, None, documents=Documents(((10, 14),), CPU))
    two, _ = by_sdpa(module, *others, None, documents=Documents(((4, 6, 14),), CPU))
    assert torch.equal(one[:, 10:], two[:, 10:])


def test_a_kernel_that_does_not_run_here_is_refused() -> None:
    assert choose(CPU, torch.float32) == "sdpa"
    with pytest.raises(UserError, match="--attention flash"):
        choose(CPU, torch.bfloat16, "flash")
