"""What a training will need: parameters, memory by part, tokens, steps and hours, before anything is loaded.

Reads the configuration of the model and the manifest of the dataset alone. The formulas are in docs/training.md.
"""

import math
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmforge import hub
from llmforge.backends import registry
from llmforge.backends.common import optimizers
from llmforge.backends.common.devices import Device, head_chunk
from llmforge.backends.common.memory import fits_gathered
from llmforge.console import warn
from llmforge.dataset.packed import PackedDataset
from llmforge.train.options import TrainOptions
from llmforge.train.roofline import floor_seconds, step_parts
from llmforge.train.sampler import Sampler
from llmforge.train.shape import Shape, read_shape
from llmforge.weights.architecture import check_length
from llmforge.weights.directory import ModelDirectory

if TYPE_CHECKING:
    import torch

    from llmforge.backends.base import Engine

ROWS_LOOKED_AT = 1000
PYTHON_AND_TORCH = 600_000_000  # bytes of a process that has imported torch and transformers
CUDA_CONTEXT = 1_000_000_000
LOW = {"bf16": 2, "fp16": 2, "fp32": 4}  # bytes of a number in products


def teacher_shape(config: TrainOptions, start: Shape) -> Shape | None:
    """The shape of the model of --distill-from-source, where training starts from one of shape `start`."""
    if config.retention.distill_from_source is None:
        return None
    source = config.retention.source_model
    return start if source is None else read_shape(ModelDirectory(hub.local(source)))


def step_flops(shape: Shape, config: TrainOptions, visible: float) -> float:
    """FLOPs of one token's step; with a teacher its forward pass too, and a second head as if all tokens were old."""
    own, teacher = shape.flops_per_token(config.trainable, visible), teacher_shape(config, shape)
    own += 6 * shape.adapters(config.lora)
    if teacher is None:
        return own
    return own + teacher.forward_flops(visible) + 6 * teacher.vocabulary * shape.width


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
    config: TrainOptions,
    length: int,
    *,
    precision: str,
    plugin: str,
    on_cpu: bool,
    processes: int,
    device_memory: int,
) -> dict[str, int]:
    """Bytes per process by part, at the peak of a step, on devices of `device_memory` bytes."""
    trained, teacher = (
        shape.trained(config.trainable) + shape.adapters(config.lora),
        teacher_shape(config, shape),
    )
    low = LOW[precision]
    sharing = registry.find(registry.resolved(plugin, processes)).sharding(config, processes)
    stored = low if sharing.low else 4
    weights = stored * shape.parameters // sharing.model // sharing.weights
    gradients = stored * trained // sharing.model // sharing.gradients
    # And float32 weights where those of the model are in the dtype of training.
    embeddings = min(trained, shape.embedding_parameters * shape.trains_embeddings(config.trainable))
    optimizer = optimizers.find(config.optimizer).state_bytes(embeddings, trained - embeddings)
    optimizer = (optimizer + (4 * trained if sharing.low else 0)) // sharing.model // sharing.optimizer
    casts = 0
    if low == 2 and not sharing.low and sharing.weights == 1:
        casts = low * shape.layers * shape.layer_parameters
    tokens = config.micro_batch_size * length
    kept = activations(shape, tokens, low, config.gradient_checkpointing) // sharing.activations
    chunk = min(config.head_chunk or head_chunk(shape.vocabulary, low, on_cpu), tokens)
    head = chunk * shape.vocabulary * (4 + 4 + low)
    head += shape.vocabulary * shape.width * (low + 4)
    # The peak is in the head, when all activations are kept and only earlier micro-batches have left
    # gradients, or at the end of the backward pass, when all gradients are there and one layer's
    # activations.
    before = gradients if config.gradient_accumulation_steps > 1 else 0
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
    if config.retention.ema is not None:
        parts["average"] = 4 * trained // sharing.model // sharing.weights
    if config.retention.l2_to_start is not None:
        parts["start"] = 4 * trained // sharing.model // sharing.weights
    if teacher:
        logits = chunk * teacher.vocabulary * (4 + 4 + 4 + low) + shape.vocabulary * shape.width * 4
        parts |= {"source model": low * teacher.parameters, "second head": logits}
    if sharing.weights > 1:
        parts["gathered"] = 2 * low * max(shape.layer_parameters, shape.embedding_parameters)
        if sharing.keeps_gathered and not on_cpu and fits_gathered(low * shape.parameters, device_memory):
            parts["gathered"] = low * shape.parameters
    return parts


def _check_free(needed: int, free: int) -> None:
    if needed > free:
        warn(
            f"a step needs an estimated {needed / 1e9:.1f} GB more per process, and {free / 1e9:.1f} GB are free; "
            "--gradient-checkpointing, a smaller --micro-batch-size or --plugin fsdp need less."
        )


def check_step_memory(
    config: TrainOptions, shape: Shape, engine: "Engine", length: int, device: "torch.device"
) -> None:
    """Warns where the memory of `device` is too small for steps with rows of `length` tokens."""
    import torch

    from llmforge.backends.build import device_memory

    on_cpu = device.type == "cpu"
    needed = memory(
        shape,
        config,
        length,
        precision=engine.precision,
        plugin=engine.name,
        on_cpu=on_cpu,
        processes=engine.world.size,
        device_memory=0 if on_cpu else torch.cuda.mem_get_info(device)[1],
    )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if on_cpu else 1
    # The engine has been made, and these are in memory already.
    made = ("weights", "optimizer", "average", "start", "source model", "program")
    rest = sum(size for part, size in needed.items() if part not in made)
    _check_free(rest, device_memory(device) // local)


def activations(shape: Shape, tokens: int, low: int, recomputed: bool) -> int:
    """Bytes that forward keeps for backward (`llmforge.backends.torch.memory_saving`).

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
    floor_tokens_per_second: float | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "memory_bytes": sum(self.memory.values())}

    def render(self) -> str:
        total = sum(self.memory.values())
        time = f"{self.hours:.2f} h" if self.hours >= 1 else f"{self.hours * 60:.1f} min"
        lines = [
            f"parameters          {self.parameters:>16,}   trained {self.trained_parameters:,}",
            f"tokens              {self.tokens:>16,}   steps {self.steps:,} of {self.rows_per_step} rows",
            f"memory per process  {total / 1e9:>13.2f} GB   {self.device} has {self.device_memory / 1e9:.1f} GB",
            *(f"  {name:<18}{size / 1e9:>13.2f} GB" for name, size in self.memory.items()),
            f"speed      {self.tokens_per_second:>16,.0f} tokens/s   {self.processes} x {self.device}, {self.precision}, "
            f"{self.flops_per_token / 1e9:.2f} GFLOP per token",
            *(f"learning rate       {rate:>16.3g}   {name}" for name, rate in self.learning_rates.items()),
            f"time                {time:>14}",
        ]
        if self.floor_tokens_per_second:
            lines.insert(
                -1,
                f"  at most  {self.floor_tokens_per_second:>16,.0f} tokens/s   (roofline, docs/performance.md)",
            )
        return "\n".join(lines)


def make_plan(
    config: TrainOptions, source: ModelDirectory, device: Device | None = None, processes: int = 1
) -> Plan:
    """The plan of `config`, on `processes` devices of kind `device` (this machine's where None)."""
    from llmforge.backends.common.devices import this_device

    device = device or this_device()
    shape, data = read_shape(source), PackedDataset(config.data)
    check_length(source.config, source.path, data.max_length)
    precision: str = config.mixed_precision
    backend = registry.find(registry.resolved(config.plugin, processes))
    backend.check_model(config, source, processes, data.max_length)
    if precision == "auto":
        precision = backend.automatic_precision(device.bf16_is_fast)
    rows = (
        config.micro_batch_size
        * config.gradient_accumulation_steps
        * backend.data_processes(config, processes)
    )
    sampler = Sampler(data, config.seed, config.weights())
    per_epoch = -(-len(sampler) // rows)
    steps = min(per_epoch * config.num_epochs, config.max_steps or 1 << 62)
    tokens = int(sampler.tokens * min(config.num_epochs, steps / per_epoch))
    visible = visible_keys(data, config.cross_document_attention)
    flops = step_flops(shape, config, visible)
    floor = _floor(shape, config, data.max_length, visible, device, precision, processes)
    speed = min(processes * device.attainable(precision) / flops, floor or math.inf)
    return Plan(
        parameters=shape.parameters,
        trained_parameters=shape.trained(config.trainable) + shape.adapters(config.lora),
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
            device_memory=device.memory,
        ),
        device=device.name,
        device_memory=device.memory,
        precision=precision,
        processes=processes,
        flops_per_token=flops,
        tokens_per_second=speed,
        hours=tokens / speed / 3600,
        learning_rates=config.rates.factors().peaks(config.learning_rate, shape.layers),
        floor_tokens_per_second=floor,
    )


def _floor(
    shape: Shape,
    config: TrainOptions,
    length: int,
    visible: float,
    device: Device,
    precision: str,
    processes: int,
) -> float | None:
    """Tokens/s that `processes` devices cannot exceed, where all is trained by AdamW and they are known."""
    if (
        config.retention.distill_from_source is not None
        or not device.bandwidth
        or config.trainable != "all"
        or config.optimizer != "adamw"
    ):
        return None
    tokens, micro, low = config.micro_batch_size * length, config.gradient_accumulation_steps, LOW[precision]
    chunk = config.head_chunk or head_chunk(shape.vocabulary, low, device.is_cpu)
    recomputed = config.gradient_checkpointing
    parts = step_parts(shape, tokens, micro, visible, low=low, chunk=chunk, recomputed=recomputed)
    return processes * tokens * micro / floor_seconds(parts, device, precision)
