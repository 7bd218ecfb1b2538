"""The chunked head against the plain one: the same losses and gradients, whatever the chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llmforge.backends.common.devices import HEAD_BYTES, LARGEST_HEAD_CHUNK, head_chunk
from llmforge.backends.common.head import chunked_cross_entropy
from llmforge.weights.modules import Logits


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 40),
    vocabulary=st.integers(2, 50),
    chunk=st.integers(1, 50),
    masked=st.floats(0, 1),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 0.5, 30.0]),
    seed=st.integers(0, 1000),
)
def test_losses_and_gradients_are_those_of_the_plain_head(
    tokens: int,
    vocabulary: int,
    chunk: int,
    masked: float,
    bias: bool,
    scale: float,
    softcap: float | None,
    seed: int,
) -> None:
    chance = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 8, generator=chance).requires_grad_()
    weight = torch.randn(vocabulary, 8, generator=chance).requires_grad_()
    offset = torch.randn(vocabulary, generator=chance).requires_grad_() if bias else None
    targets = torch.randint(0, vocabulary, (tokens,), generator=chance)
    targets[torch.rand(tokens, generator=chance) < masked] = -100
    logits = functional.linear(hidden, weight, offset) * scale
    if softcap:
        logits = (logits / softcap).tanh() * softcap
    plain = functional.cross_entropy(logits, targets, reduction="none")
    leaves = [tensor for tensor in (hidden, weight, offset) if tensor is not None]
    expected = torch.autograd.grad(3 * plain.sum(), leaves)
    total, each = chunked_cross_entropy(
        *(hidden, weight, offset, targets),
        dtype=torch.float32,
        chunk=chunk,
        logits_are=Logits(scale, softcap),
    )
    got = torch.autograd.grad(3 * total, leaves)
    torch.testing.assert_close(each, plain, atol=1e-5, rtol=1e-5)
    assert not each.requires_grad
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_only_trained_rows_get_a_gradient() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 4), torch.randn(12, 4, requires_grad=True)
    targets = torch.randint(0, 12, (9,))
    gradients = []
    for rows in (None, (5, 10)):
        total, _ = chunked_cross_entropy(
            hidden, weight, None, targets, dtype=torch.float32, chunk=4, trained_rows=rows
        )
        gradients += torch.autograd.grad(total, weight)
    whole, part = gradients
    assert torch.allclose(part[5:10], whole[5:10], atol=1e-6)
    assert not part[:5].any()
    assert not part[10:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 16, requires_grad=True), torch.randn(100, 16, requires_grad=True)
    targets = torch.randint(0, 100, (64,))
    expected = functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    total, _ = chunked_cross_entropy(hidden, weight, None, targets, dtype=dtype, chunk=10)
    assert total.item() == pytest.approx(expected.item(), rel=0.01)


@pytest.mark.parametrize("vocabulary", [1_000, 32_000, 69_104, 128_256, 262_144, 1_000_000])
@pytest.mark.parametrize("low", [2, 4])
def test_chunks_on_a_gpu_are_as_large_as_their_memory_allows(vocabulary: int, low: int) -> None:
    chunk, token = head_chunk(vocabulary, low, on_cpu=False), vocabulary * (4 + low)
    assert chunk % 256 == 0
    assert chunk * token <= HEAD_BYTES or chunk == 256
    assert (chunk + 256) * token > HEAD_BYTES or chunk == LARGEST_HEAD_CHUNK
    assert head_chunk(vocabulary, low, on_cpu=True) == 512
