"""An adapter in the files that peft reads: adapter_config.json and adapter_model.safetensors.

The names and keys are peft's (huggingface/peft: src/peft/utils/save_and_load.py, tuners/lora/config.py,
tuners/trainable_tokens/layer.py). Keys with their default are left out, so that versions without them read it, too.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmforge.backends.common import storage
from llmforge.backends.common.settings import Adapters
from llmforge.hub import name_of
from llmforge.weights.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_json

PREFIX = "base_model.model."


@dataclass(frozen=True)
class PeftAdapter:
    """`tensors` by peft's names on the CPU, on the main rank alone, and the configuration that goes with them."""

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    def write(self, directory: Path) -> None:
        if self.tensors:
            storage.write_weights(
                self.tensors, directory, ADAPTER_WEIGHTS, shard_bytes=sys.maxsize
            )  # one file
            write_json(directory / ADAPTER_CONFIG, self.config)


def peft_name(name: str) -> str:
    """The name in peft's files of a trained parameter with this name in the model: of an adapter, or of an embedding of
    which rows are trained.
    """
    if ".lora_" not in name:
        return f"{PREFIX}{name.removesuffix('.weight')}.token_adapter.trainable_tokens_delta"
    name = name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    return PREFIX + name.replace(".default.", ".")


def configuration(
    wanted: Adapters, targets: Sequence[str], base: Path, tables: Sequence[str], rows: tuple[int, int] | None
) -> dict[str, Any]:
    """adapter_config.json of adapters of the layers `targets` over the model directory `base`, and of the half-open range
    `rows` of the embeddings `tables` (modules by name).
    """
    name, _, revision = (name_of(base.absolute()) or str(base)).partition("@")
    alpha = wanted.alpha_or_default
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision or None,
        "inference_mode": True,
        "r": wanted.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": wanted.dropout,
        "use_rslora": wanted.stabilized,
        "use_dora": wanted.decomposed,
        "target_modules": list(targets),
        "bias": "none",
    }
    if rows:
        config["trainable_token_indices"] = {table: list(range(*rows)) for table in tables}
    return config
