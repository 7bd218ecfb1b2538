"""Which matrices of a model are rounded, and what `config.json` then says of it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.weights.floats import BYTES
from llmforge.weights.quantization import Kind
from llmforge.weights.quantization.rounding import BLOCK, Layout, layout
from llmforge.weights.read import Weights
from llmforge.weights.tensor import Tensor

ON_CPU = (4, 53)  # the first that lets bitsandbytes compute on a CPU without Intel's extension of torch
LEAST = 0.5  # of the weights outside of embedding and head, below which the model would not become smaller


@dataclass(frozen=True)
class Plan:
    """`matrices` are the names in the weight files of what is rounded, True where the file holds it transposed (GPT-2); `kept`
    the modules that are linear and stay as they are.
    """

    kind: Kind
    matrices: dict[str, bool]
    kept: tuple[str, ...]

    def settings(self, dtype: str) -> dict[str, Any]:
        """`quantization_config`, by which transformers and vLLM know what the files hold."""
        four = self.kind == "int4"
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": four,
            "load_in_8bit": not four,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_use_double_quant": True,
            "llm_int8_threshold": 6.0,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_skip_modules": list(self.kept),
        }

    def told(self, weights: Weights, width: int = 0) -> str:
        """How many weights are rounded, in how many bits, and what all of them take where the others have `width` bytes each
        (default: as they are stored).
        """
        small = sum(self._size(weights.tensors[name]) for name in self.matrices)
        elements = sum(math.prod(weights.tensors[name].shape) for name in self.matrices)
        others = [one for name, one in weights.tensors.items() if name not in self.matrices]
        rest = sum(width * math.prod(one.shape) if width else one.size for one in others)
        count = elements + sum(math.prod(one.shape) for one in others)
        return (
            f"{elements:,} of {count:,} weights in {self.kind}, {8 * small / elements:.2f} bits each with their scales; all "
            f"weights take {(small + rest) / 1e6:,.1f} MB, {8 * (small + rest) / count:.2f} bits each."
        )

    def layout(self, tensor: Tensor) -> Layout:
        """`rounding.layout` of a matrix in a weight file."""
        outputs, inputs = reversed(tensor.shape) if self.matrices[tensor.name] else tensor.shape
        return layout(self.kind, outputs, inputs)

    def _size(self, tensor: Tensor) -> int:
        """Bytes of a rounded matrix with its scales."""
        return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in self.layout(tensor).values())


def make_plan(
    directory: Path, config: Any, weights: Weights, kind: Kind, trust_remote_code: bool = False
) -> Plan:
    """What `--quantize kind` rounds of the model in `directory`, by transformers' configuration `config`: its linear layers, but
    the head, which is as sensitive as the embedding it may be tied to.

    Raises `UserError` without bitsandbytes, and for a model most of which is elsewhere, as in experts that transformers joins.
    """
    require_library(f"--quantize {kind}")
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    prefix = f"{model.base_model_prefix}."
    matrices: dict[str, bool] = {}
    kept: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, (torch.nn.Linear, Conv1D)):
            continue
        stored = next(
            (n for n in (f"{name}.weight", f"{name.removeprefix(prefix)}.weight") if n in weights.tensors), ""
        )
        turned = isinstance(module, Conv1D)
        inputs = module.weight.shape[0 if turned else 1]
        plain = type(module) in (torch.nn.Linear, Conv1D)
        if module is head or not stored or not plain or (kind == "int4" and inputs % BLOCK):
            kept.append(name)
        else:
            matrices[stored] = turned
    outside = {id(table.weight), id(head.weight)}
    inner = sum(one.numel() for one in model.parameters() if id(one) not in outside)
    rounded = sum(math.prod(weights.tensors[name].shape) for name in matrices)
    if rounded < LEAST * inner:
        raise UserError(
            f"--quantize {kind}: only {rounded / max(inner, 1):.0%} of the weights of {directory} are in linear layers that "
            "bitsandbytes knows, by the names that transformers has for them (experts of a mixture are not, nor the text part of "
            "a multimodal Gemma 3); leave --quantize out."
        )
    return Plan(kind, matrices, tuple(kept))


def require_library(what: str, computes: bool = False) -> None:
    """Raises `UserError` that `what` needs bitsandbytes where it is not installed, or, where `what` computes with it, a newer
    transformers than is installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"{what} needs the package bitsandbytes: pip install 'llmforge[quantize]'.") from None
    if not computes:
        return
    import torch
    import transformers

    version = transformers.__version__
    if tuple(map(int, version.split(".")[:2])) < ON_CPU and not torch.cuda.is_available():
        raise UserError(
            f"{what} needs transformers {'.'.join(map(str, ON_CPU))} or newer on a CPU, and this is {version}: pip install -U "
            "transformers."
        )
