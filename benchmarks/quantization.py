"""What ways of rounding linear layers to 4 bits cost in bits per byte, on SmolLM2-135M and the demo's held-out texts.

    python benchmarks/quantization.py [--documents 10] [--characters 200] [--only nf4-32-fitted gptq]

Every way gives the values that its format can hold, and the model computes with them in float32, so that kernels make no
difference. Embedding and head, a fifth of this model, stay as they are. Bits per weight are those of the rounded
matrices with their scales. `evaluate --quantize` itself is measured by evaluate.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type, quantize_4bit

from llmforge.evaluate.bits import measure
from llmforge.evaluate.models import load_model
from llmforge.evaluate.texts import load_corpora
from llmforge.weights.quantization.rounding import BLOCK

Rounding = Callable[[str, torch.Tensor], torch.Tensor]
VALUES = get_4bit_type("nf4", device="cpu")
MIDDLES = (VALUES[1:] + VALUES[:-1]) / 2
SHARED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}  # layers with the same input


def near(quotients: torch.Tensor) -> torch.Tensor:
    return VALUES[torch.bucketize(quotients, MIDDLES)]


def nf4(matrix: torch.Tensor, block: int) -> torch.Tensor:
    """bitsandbytes' own: the scale of a block is its largest magnitude, stored in 8 bits."""
    return dequantize_4bit(
        *quantize_4bit(matrix, blocksize=block, compress_statistics=True, quant_type="nf4")
    )


def fitted(blocks: torch.Tensor, rounds: int = 3) -> torch.Tensor:
    """Scales (..., 1) of `blocks` (..., block) by least squares, in turns with the values."""
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    for _ in range(rounds):
        values = near(blocks / scale)
        better = (blocks * values).sum(-1, keepdim=True) / values.square().sum(-1, keepdim=True)
        scale = torch.where(better > 0, better, scale)
    return scale


def nf4_fitted(matrix: torch.Tensor, block: int) -> torch.Tensor:
    blocks = matrix.reshape(-1, block)
    scale = fitted(blocks)
    return (near(blocks / scale) * scale).reshape(matrix.shape)


def uniform(matrix: torch.Tensor, block: int, shrinks: tuple[float, ...] = (1.0,)) -> torch.Tensor:
    """16 equidistant values with an integer zero and a bfloat16 scale, of the range of a block, or of the part of it that
    errs least (torchao's Int4WeightOnlyConfig, compressed-tensors' pack-quantized).
    """
    blocks = matrix.reshape(-1, block)
    low, high = blocks.amin(1, True).clamp(max=0), blocks.amax(1, True).clamp(min=0)
    best = torch.full_like(low, torch.inf)
    found = torch.zeros_like(blocks)
    for shrink in shrinks:
        scale = ((high - low) * shrink / 15).clamp(min=1e-30).bfloat16().float()
        zero = (-low * shrink / scale).round().clamp(0, 15)
        made = ((blocks / scale + zero).round().clamp(0, 15) - zero) * scale
        error = (made - blocks).square().sum(1, True)
        found = torch.where(error < best, made, found)
        best = torch.minimum(error, best)
    return found.reshape(matrix.shape)


def hqq(matrix: torch.Tensor, block: int) -> torch.Tensor:
    """Half-quadratic quantization: the zero of each block is fitted to an error of norm 0.7 (torchao's HQQ)."""
    blocks = matrix.reshape(-1, block)
    low, high = blocks.amin(1, True), blocks.amax(1, True)
    inverse = 15 / (high - low).clamp(min=1e-30)
    zero, weight = -low * inverse, 10.0
    for _ in range(20):
        codes = (blocks * inverse + zero).round().clamp(0, 15)
        error = blocks - (codes - zero) / inverse
        shrunk = error.sign() * torch.relu(error.abs() - error.abs().clamp(min=1e-12) ** -0.3 / weight)
        zero, weight = (codes - (blocks - shrunk) * inverse).mean(1, True), 1.01 * weight
    codes = (blocks * inverse + zero).round().clamp(0, 15)
    return ((codes - zero) / inverse).reshape(matrix.shape)


def moments(
    model: torch.nn.Module, layers: dict[str, torch.nn.Linear], tokens: int
) -> dict[str, torch.Tensor]:
    """The second moments (inputs, inputs) of what each layer is given for random tokens."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: object, given: tuple[torch.Tensor]) -> None:
            rows = given[0].reshape(-1, given[0].shape[-1])
            found[name] = found.get(name, torch.zeros(())) + rows.T @ rows

        return hook

    own = [name for name in layers if name.rpartition(".")[2] not in SHARED]
    hooks = [layers[name].register_forward_pre_hook(keep(name)) for name in own]
    ids = torch.randint(
        0, model.config.vocab_size, (tokens // 128, 128), generator=torch.Generator().manual_seed(0)
    )
    for row in ids:
        model.model(row[None])
    for hook in hooks:
        hook.remove()
    return found


def gptq(matrix: torch.Tensor, moment: torch.Tensor, block: int) -> torch.Tensor:
    """Column by column, what rounding one loses is made up for by those to its right (arXiv 2210.17323), in NF4."""
    work, made = matrix.clone(), torch.empty_like(matrix)
    moment = moment + torch.eye(len(moment)) * (0.01 * moment.diagonal().mean() + 1e-9)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for first in range(0, matrix.shape[1], block):
        part = work[:, first : first + block]
        scale = fitted(part)[:, 0]
        errors = torch.empty_like(part)
        for j in range(block):
            at = first + j
            made[:, at] = near(part[:, j] / scale) * scale
            errors[:, j] = (part[:, j] - made[:, at]) / upper[at, at]
            part[:, j + 1 :] -= errors[:, j, None] * upper[at, at + 1 : first + block]
        work[:, first + block :] -= errors @ upper[first : first + block, first + block :]
    return made


def ways(moment: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, str, float, Rounding]]:
    """(name, what it is, bits per weight, rounding)."""
    shrinks = tuple(1 - i / 40 for i in range(13))
    own = "NF4, blocks of 32"
    yield "none", "as the model is", 16, lambda _, w: w
    yield "nf4-64", "NF4, blocks of 64 (transformers' BitsAndBytesConfig)", 4.13, lambda _, w: nf4(w, 64)
    yield "nf4-32", f"{own} (`int4`)", 4.25, lambda _, w: nf4(w, BLOCK)
    yield (
        "nf4-32-but-down",
        f"{own}, but down_proj, a quarter of the weights, as it is",
        7.19,
        lambda name, w: w if name.endswith("down_proj") else nf4(w, BLOCK),
    )
    yield "nf4-32-fitted", f"{own}, scales by least squares", 5, lambda _, w: nf4_fitted(w, BLOCK)
    yield (
        "gptq",
        f"{own}, scales by least squares, GPTQ on random tokens",
        5,
        lambda name, w: gptq(w, moment(name), BLOCK),
    )
    yield "uniform-32", "equidistant, blocks of 32, asymmetric", 4.63, lambda _, w: uniform(w, 32)
    yield "uniform-32-mse", "the same, range by least squares", 4.63, lambda _, w: uniform(w, 32, shrinks)
    yield "hqq-32", "equidistant, blocks of 32, HQQ", 5, lambda _, w: hqq(w, 32)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=Path, default=Path.home() / ".cache/llmforge/inputs")
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--characters", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    texts = [f"{name}={asked.inputs}/demo/heldout/{name}.jsonl" for name in ("zh", "en")]
    corpora = load_corpora(texts, asked.documents, asked.characters)
    loaded = load_model(asked.inputs / "smollm2")
    layers = {
        name: module
        for name, module in loaded.model.named_modules()
        if type(module) is torch.nn.Linear and module is not loaded.model.get_output_embeddings()
    }
    whole = {name: module.weight.data.clone() for name, module in layers.items()}
    known: dict[str, torch.Tensor] = {}

    def moment(name: str) -> torch.Tensor:
        stem, _, last = name.rpartition(".")
        return known[f"{stem}.{SHARED.get(last, last)}"]

    base: list[float] = []
    print(
        "| rounding | bits per weight | zh bits/byte | | en bits/byte | | CPU s |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for name, what, bits, way in ways(moment):
        if asked.only and name not in ("none", *asked.only):
            continue
        start = time.process_time()
        if name == "gptq":
            for one, module in layers.items():
                module.weight.data = whole[one]
            known.update(moments(loaded.model, layers, 1024))
        for one, module in layers.items():
            module.weight.data = way(one, whole[one])
        seconds = time.process_time() - start
        found = [measure(loaded, one, 2048, 2048, lambda *_: None).bits_per_byte for one in corpora]
        base = base or found
        cells = " | ".join(f"{x:.4f} | {100 * (x / y - 1):+.1f} %" for x, y in zip(found, base, strict=True))
        print(f"| {what} | {bits:g} | {cells} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
