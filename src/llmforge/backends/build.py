"""Choosing and making the engine of a run."""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch

from llmforge.backends import registry
from llmforge.backends.base import Engine, MicroBatch, World
from llmforge.backends.common import attention, optimizers, packing
from llmforge.backends.common.attention_check import find_way
from llmforge.backends.common.devices import head_chunk
from llmforge.backends.common.settings import PRECISIONS, Adapters, Settings
from llmforge.backends.common.trainable import parse
from llmforge.console import say, warn
from llmforge.weights.architecture import check_length
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.memory import free_memory
from llmforge.weights.read import Weights

# Weights, gradients and the two moments of AdamW in float32 (weights alone under adapters), with a third more for
# activations and the rest.
BYTES_PER_PARAMETER, BYTES_PER_FROZEN = 16 * 4 / 3, 4 * 4 / 3


def choose_device(rehearse: bool = False) -> torch.device:
    """This process's device: a GPU of its own where there are GPUs, else the CPU; a rehearsal takes the CPU."""
    if rehearse or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the machine itself computes bf16 products; emulated ones are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def device_memory(device: torch.device) -> int:
    """Bytes of memory of `device` that are free now; for a CPU, those that this process may have."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def count_parameters(weights: Weights) -> int:
    """The numbers in the weights of a model, whatever they are stored in."""
    return sum(math.prod(tensor.shape) for tensor in weights.tensors.values())


def choose_plugin(wanted: str, world: World, device: torch.device, parameters: int, lora: bool) -> str:
    """The plugin to run: `auto` shares the model among processes only where one cannot hold it."""
    if wanted != registry.AUTO or world.size == 1:
        return registry.resolved(wanted, world.size)
    per_process = device_memory(device) / (1 if device.type == "cuda" else world.size)
    needed = parameters * (BYTES_PER_FROZEN if lora else BYTES_PER_PARAMETER)
    return "ddp" if needed < per_process else "fsdp"


def choose_attention(config: Any, device: torch.device, precision: str, is_main: bool) -> str:
    """`--attention`, or flash where `--use-flash-attn` asks for it and it is there."""
    if not config.use_flash_attn:
        return str(config.attention)
    can = attention.available(device, PRECISIONS[precision])
    if "flash" not in can and is_main:
        say(
            f"flash-attn is not available (it needs a GPU, bf16 or fp16, and the package flash-attn); using {can[0]} attention."
        )
    return "flash" if "flash" in can else "auto"


def _check(config: Any, model: ModelDirectory, world: World, length: int) -> None:
    """Refuses what the plugin of `config` cannot do with `model` and rows of `length` tokens."""
    check_length(model.config, model.path, length)
    backend = registry.find(registry.resolved(config.plugin, world.size))
    backend.check_environment(config, torch.cuda.is_available())
    backend.check_model(config, model, world.size, length)


def say_routers(config: Any, model: object) -> None:
    """Says where transformers would add to the loss what balances experts, which training does not."""
    if config.to_dict().get("output_router_logits"):
        warn(
            f"{model}: output_router_logits is set, but training uses the loss of the text only; what "
            "transformers adds to it for the routers (router_aux_loss_coef) is not part of it."
        )


def adapters(lora: Any) -> Adapters | None:
    """What the `LoraOptions` ask for; None without a rank."""
    if lora.lora_rank is None:
        return None
    targets = tuple(lora.lora_targets)
    return Adapters(
        lora.lora_rank, lora.lora_alpha, targets, lora.rslora, dropout=lora.lora_dropout, decomposed=lora.dora
    )


def build_engine(
    config: Any,
    model: ModelDirectory,
    vocabulary: Any,
    groups: int,
    device: torch.device,
    world: World,
    length: int,
    documents_per_row: int,
    origin: ModelDirectory | None = None,
    teacher: ModelDirectory | None = None,
    calibration: Iterable[MicroBatch] | None = None,
) -> Engine:
    """The engine of `config` (a `TrainOptions`), with the weights of the model directory `model`, for a run that began
    with `origin` (None: with `model`) and learns from `teacher`, `calibration` being the text of
    --protect-source (None for a run that is resumed), for rows of `length`
    tokens and at most `documents_per_row` documents. `UserError` where the plugin of `config` cannot do that, before
    anything is loaded.
    """
    _check(config, model, world, length)
    plugin = choose_plugin(
        config.plugin, world, device, count_parameters(model.weights), lora=parse(config.trainable).lora
    )
    optimizers.find(config.optimizer).check_backend(plugin)
    backend, precision = registry.find(plugin), config.mixed_precision
    if precision == "auto":
        precision = backend.automatic_precision(computes_in_bf16(device))
    settings = Settings(
        model=model,
        precision=precision,
        trainable=parse(config.trainable),
        old_rows=vocabulary.source,
        rows=vocabulary.size,
        groups=groups,
        seed=config.seed,
        weight_decay=config.weight_decay,
        decay_embeddings=config.embedding_decay,
        betas=(config.beta1, config.beta2),
        clip=config.gradient_clipping,
        head_chunk=config.head_chunk
        or head_chunk(vocabulary.padded, PRECISIONS[precision].itemsize, device.type == "cpu"),
        gradient_checkpointing=config.gradient_checkpointing,
        compile=config.compile,
        attention=choose_attention(config, device, precision, world.is_main),
        lora=adapters(config.lora),
        noise=config.neft_alpha if config.use_neft else 0.0,
        optimizer=config.optimizer,
        rates=config.rates.factors(),
        ema=config.retention.ema,
        l2_to_start=config.retention.l2_to_start,
        origin=origin,
        distillation=config.retention.distill_from_source,
        teacher=teacher,
        protect=config.retention.protected_share,
        calibration=calibration,
        device=str(device),
    )
    if world.is_main:
        say_routers(model.config, model)
    kernel = attention.NAMES[attention.choose(device, PRECISIONS[precision], settings.attention)]
    packing.check_rows(find_way(model.config, kernel), backend, length, documents_per_row, tell=world.is_main)
    return backend.build(config, settings, world)
