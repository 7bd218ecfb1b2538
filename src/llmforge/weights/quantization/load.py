"""A model whose weights are rounded while they are read, one matrix after the other."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmforge.errors import UserError
from llmforge.weights.config import load_config, read_config
from llmforge.weights.floats import STORAGE
from llmforge.weights.quantization import Kind
from llmforge.weights.quantization.plan import Plan, make_plan, require_library
from llmforge.weights.quantization.rounding import rounded
from llmforge.weights.read import Weights
from llmforge.weights.tensor import Tensor

if TYPE_CHECKING:
    import torch

TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def rounded_parts(
    tensor: Tensor, plan: Plan, dtype: str, device: "torch.device"
) -> "dict[str, torch.Tensor]":
    """The tensors, by their names in weight files, that `tensor`, a matrix of `plan`, is stored as."""
    import numpy as np
    import torch

    tensor.check_finite()
    matrix = torch.from_numpy(np.concatenate([block for _, block in tensor.blocks()])).to(device)
    if plan.matrices[tensor.name]:
        matrix = matrix.T.contiguous()
    module = tensor.name.removesuffix(".weight")
    return {f"{module}.{name}": part for name, part in rounded(plan.kind, matrix, dtype).items()}


def quantized_model(
    directory: Path,
    weights: Weights,
    kind: Kind,
    dtype: str,
    device: "torch.device",
    trust_remote_code: bool = False,
) -> tuple[Any, Plan]:
    """The model of `directory` in evaluation mode on `device`, its linear layers in 8 or 4 bits and all else in `dtype`
    ("float32", "bfloat16" or "float16"), and what was rounded. Takes the memory of the result and of one matrix.
    """
    import torch
    from transformers import AutoModelForCausalLM

    require_library(f"--quantize {kind}", computes=True)
    config = load_config(directory, trust_remote_code)
    plan = make_plan(directory, config, weights, kind, trust_remote_code)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in weights.tensors.items():
        if name in plan.matrices:
            state.update(rounded_parts(tensor, plan, dtype, device))
        else:
            state[name] = _tensor(tensor, getattr(torch, dtype), device)
    with torch.device("meta"):
        kinds = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    config.quantization_config = plan.settings(dtype)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every layer what it computes in
    model = kinds.from_pretrained(
        None,
        config=config,
        state_dict=state,
        torch_dtype=getattr(torch, dtype),
        device_map={"": device},
        trust_remote_code=trust_remote_code,
    )
    return model.eval(), plan


def is_quantized(directory: Path) -> bool:
    """Whether `config.json` says that the weights are those of bitsandbytes, as `export --quantize` writes them."""
    stated = read_config(directory).get("quantization_config")
    return isinstance(stated, dict) and stated.get("quant_method") == "bitsandbytes"


def stored_model(directory: Path, dtype: str, device: "torch.device", trust_remote_code: bool = False) -> Any:
    """The model of a directory that `is_quantized`, as transformers reads it; what is not rounded in `dtype`.

    Raises `UserError` without bitsandbytes, and where tensors are missing or surplus.
    """
    import torch
    from transformers import AutoModelForCausalLM

    require_library(f"{directory} is quantized by bitsandbytes, and", computes=True)
    config = load_config(directory, trust_remote_code)
    config.quantization_config = {**config.quantization_config, "bnb_4bit_compute_dtype": dtype}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    model, found = AutoModelForCausalLM.from_pretrained(
        directory,
        config=config,
        torch_dtype=getattr(torch, dtype),
        device_map={"": device},
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    for what in ("missing_keys", "unexpected_keys"):
        if names := sorted(found[what]):
            raise UserError(
                f"{directory}: {what.replace('_', ' ')} {names[0]} ({len(names)} of them); copy the model again."
            )
    return model.eval()


def _tensor(tensor: Tensor, dtype: "torch.dtype", device: "torch.device") -> "torch.Tensor":
    import torch

    tensor.check_finite()
    if tensor.dtype not in STORAGE:
        raise UserError(f"{tensor.path}: {tensor.name} has the dtype {tensor.dtype}; leave --quantize out.")
    stored = torch.from_numpy(tensor.read(0, tensor.size))
    return stored.view(getattr(torch, TORCH[tensor.dtype])).reshape(tensor.shape).to(device, dtype)
