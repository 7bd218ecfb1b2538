"""What a training will need: parameters, memory by part, tokens, steps and hours, before anything is loaded.

Reads the headers of the weights and the manifest of the dataset alone. The formulas are in docs/training.md.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.data.dataset import PackedDataset
from llmforge.engine.colossal import rules
from llmforge.engine.devices import Device
from llmforge.engine.trainable import parse
from llmforge.errors import UserError
from llmforge.model.architecture import HEADS
from llmforge.model.weights import open_weights
from llmforge.train.config import TrainConfig

ROWS_LOOKED_AT = 1000
PYTHON_AND_TORCH = 600_000_000  # bytes of a process that has imported torch and transformers
CUDA_CONTEXT = 1_000_000_000


@dataclass(frozen=True)
class Shape:
    """The sizes of a LLaMA-architecture model, from its configuration and the headers of its weights."""

    layers: int
    width: int
    intermediate: int
    heads: int
    head_width: int
    vocabulary: int
    tied: bool
    parameters: int
    layer_parameters: int

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.width * (1 if self.tied else 2)

    def trained(self, trainable: str) -> int:
        """Parameters that `--trainable` updates; for new-embeddings the whole matrix, whose gradient is
        masked.
        """
        wanted = parse(trainable)
        if wanted.everything:
            return self.parameters
        layers: set[int] = set()
        for first, end in wanted.layers:
            layers.update(range(first, self.layers if end is None else end))
        return len(layers) * self.layer_parameters + self.embedding_parameters * wanted.embeddings

    def flops_per_token(self, trainable: str, visible: float) -> float:
        """Model FLOPs of one token's step: forward, the way back through activations, and gradients of
        weights.

        Two per weight of every product (the head's included, the embedding lookup not), and 4 x heads x
        head width per visible key and layer. No recomputation counts.
        """
        weights = self.layers * self.layer_parameters + self.vocabulary * self.width
        forward = 2 * weights + 4 * self.layers * self.heads * self.head_width * visible
        wanted = parse(trainable)
        if wanted.everything:
            return 3 * forward
        head = self.vocabulary * self.width if wanted.embeddings else 0
        layers = self.trained(trainable) - self.embedding_parameters * wanted.embeddings
        return 2 * forward + 2 * (layers + head) * (not wanted.lora)


def read_shape(model: Path) -> Shape:
    """The shape of the model in the directory `model`, of which only headers are read."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{model} is not a model directory: config.json cannot be read.") from error
    tied = bool(config.get("tie_word_embeddings"))
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    counts = {
        name: math.prod(tensor.shape)
        for name, tensor in open_weights(model).tensors.items()
        if not (tied and name in HEADS)  # pickled files hold a tied matrix twice
    }
    return Shape(
        layers=layers,
        width=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        head_width=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=tied,
        parameters=sum(counts.values()),
        layer_parameters=sum(n for name, n in counts.items() if ".layers." in name) // layers,
    )


def visible_keys(data: PackedDataset, cross_document: bool) -> float:
    """Mean number of keys that a token sees: half its document, or half its row; from a sample of rows."""
    numbers = np.unique(np.linspace(0, len(data) - 1, min(len(data), ROWS_LOOKED_AT)).astype(np.int64))
    lengths = [
        np.array([row.seq_lengths.sum()]) if cross_document else row.seq_lengths for row in data.rows(numbers)
    ]
    flat = np.concatenate(lengths).astype(np.float64)
    return float((flat * (flat + 1)).sum() / 2 / flat.sum())


def memory(
    shape: Shape,
    config: TrainConfig,
    length: int,
    *,
    precision: str,
    plugin: str,
    on_cpu: bool,
    processes: int,
) -> dict[str, int]:
    """Bytes per process by part, at the peak of a step."""
    trained = shape.trained(config.trainable)
    low = 2 if precision in ("bf16", "fp16") else 4
    share = processes if plugin == "fsdp" else 1
    weights, optimizer, gradients = 4 * shape.parameters // share, 8 * trained // share, 4 * trained // share
    casts = low * shape.layers * shape.layer_parameters if low == 2 and share == 1 else 0
    ranks = 1  # that share activations
    if plugin in rules.PLUGINS and plugin != rules.TORCH_DDP:
        # Weights and gradients in the dtype of training, float32 masters and moments; each cut among data ranks from
        # a stage of ZeRO on, and all among the ranks that hold other parts of the model.
        stage = {rules.HYBRID: config.zero or 0, rules.ZERO1: 1, rules.ZERO2: 2, rules.ZERO2_CPU: 2}.get(
            plugin, 3
        )
        whole, data = config.tp * config.pp, processes // (config.tp * config.pp)
        weights = low * shape.parameters // whole // (data if stage == 3 else 1)
        gradients = low * trained // whole // (data if stage >= 2 else 1)
        optimizer = 12 * trained // whole // (data if stage >= 1 else 1)
        casts, share, ranks = 0, data if stage == 3 else 1, config.tp * config.sp
    tokens = config.micro_batch_size * length
    head = min(config.head_chunk, tokens) * shape.vocabulary * (4 + 4 + low)
    head += shape.vocabulary * shape.width * (low + 4)
    kept = activations(shape, tokens, low, config.use_grad_checkpoint) // ranks
    # The peak is in the head, when all activations are kept and only earlier micro-batches have left
    # gradients, or at the end of the backward pass, when all gradients are there and one layer's
    # activations.
    before = gradients if config.accumulation_steps > 1 else 0
    if before + kept + head < gradients + kept // shape.layers:
        before, kept, head = gradients, kept // shape.layers, 0
    parts = {
        "weights": weights,
        "optimizer": optimizer,
        "gradients": before,
        "activations": kept,
        "head": head,
        "casts": casts,
        "program": PYTHON_AND_TORCH if on_cpu else CUDA_CONTEXT,
    }
    if share > 1:
        parts["gathered"] = 2 * low * max(shape.layer_parameters, shape.embedding_parameters)
    return parts


def activations(shape: Shape, tokens: int, low: int, recomputed: bool) -> int:
    """Bytes that forward keeps for backward (`llmforge.engine.native.lean`).

    Per token and layer: the inputs of two norms in float32 and their outputs; queries, keys and values of every
    head as they enter attention, its output, and that output as it enters its projection; gate, up and their
    product.
    """
    heads = shape.heads * shape.head_width
    per_layer = shape.width * (2 * 4 + 2 * low) + 5 * heads * low + 3 * shape.intermediate * low
    kept = 4 * shape.width * shape.layers + per_layer if recomputed else shape.layers * per_layer
    return tokens * (kept + 4 * shape.width * 4)


@dataclass(frozen=True)
class Plan:
    """What `llmforge plan` shows; times in hours, sizes in bytes, rates per second."""

    parameters: int
    trained_parameters: int
    tokens: int
    steps: int
    rows_per_step: int
    memory: dict[str, int]
    device: str
    device_memory: int
    precision: str
    processes: int
    flops_per_token: float
    tokens_per_second: float
    hours: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "memory_bytes": sum(self.memory.values())}

    def render(self) -> str:
        total = sum(self.memory.values())
        lines = [
            f"parameters          {self.parameters:>16,}   trained {self.trained_parameters:,}",
            f"tokens              {self.tokens:>16,}   steps {self.steps:,} of {self.rows_per_step} rows",
            f"memory per process  {total / 1e9:>13.2f} GB   {self.device} has {self.device_memory / 1e9:.1f} GB",
            *(f"  {name:<18}{size / 1e9:>13.2f} GB" for name, size in self.memory.items()),
            f"speed               {self.tokens_per_second:>12,.0f}/s   {self.processes} x {self.device}, {self.precision}, "
            f"{self.flops_per_token / 1e9:.2f} GFLOP per token",
            f"time                {self.hours:>14.2f} h",
        ]
        return "\n".join(lines)


def make_plan(config: TrainConfig, weights: Path, device: Device | None = None, processes: int = 1) -> Plan:
    """The plan of `config`, on `processes` devices of kind `device` (this machine's where None)."""
    from llmforge.engine.devices import this_device

    device = device or this_device()
    shape, data = read_shape(weights), PackedDataset(config.dataset)
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if device.bf16_is_fast else "fp32"
    rows = config.micro_batch_size * config.accumulation_steps * processes
    per_epoch = -(-len(data) // rows)
    steps = min(per_epoch * config.num_epochs, config.max_steps or 1 << 62)
    tokens = int(data.tokens * min(config.num_epochs, steps / per_epoch))
    flops = shape.flops_per_token(config.trainable, visible_keys(data, config.cross_document_attention))
    speed = processes * device.attainable(precision) / flops
    return Plan(
        parameters=shape.parameters,
        trained_parameters=shape.trained(config.trainable),
        tokens=tokens,
        steps=steps,
        rows_per_step=rows,
        memory=memory(
            shape,
            config,
            data.max_length,
            precision=precision,
            plugin=config.plugin,
            on_cpu=device.is_cpu,
            processes=processes,
        ),
        device=device.name,
        device_memory=device.memory,
        precision=precision,
        processes=processes,
        flops_per_token=flops,
        tokens_per_second=speed,
        hours=tokens / speed / 3600,
    )
