"""Choosing and making the engine of a run."""

from pathlib import Path
from typing import Any

import torch

from llmforge.engine.protocol import Engine
from llmforge.engine.trainable import parse


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 products are done by the machine itself; emulated ones are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def build_engine(config: Any, model: Path, vocabulary: Any, groups: int) -> Engine:
    """The engine of `config` (a `TrainConfig`), with the weights of the model directory `model`."""
    from llmforge.engine.native import NativeEngine, Settings

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if computes_in_bf16(device) else "fp32"
    return NativeEngine(
        Settings(
            model=model,
            precision=precision,
            trainable=parse(config.trainable),
            old_rows=vocabulary.source,
            rows=vocabulary.size,
            groups=groups,
            seed=config.seed,
            weight_decay=config.weight_decay,
            decay_embeddings=config.embedding_decay,
            clip=config.gradient_clipping,
            head_chunk=config.head_chunk,
            gradient_checkpointing=config.use_grad_checkpoint,
            device=str(device),
        )
    )
