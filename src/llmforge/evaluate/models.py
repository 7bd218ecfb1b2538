"""Loading a Hugging Face model directory for measuring."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmforge.console import say
from llmforge.errors import UserError
from llmforge.evaluate.offload import Placement, forget_peak, place, working_bytes
from llmforge.evaluate.options import MemoryOptions
from llmforge.evaluate.products import use_onednn
from llmforge.tokenizer import Tokenizer, load
from llmforge.weights.absent import not_a_model
from llmforge.weights.completeness import check_complete
from llmforge.weights.config import load_config, refuse_own_code
from llmforge.weights.quantization.load import is_quantized, quantized_model, stored_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A causal language model in evaluation mode, its tokenizer, and the device it is computed on. `placement` where memory
    is limited.
    """

    model: Any
    tokenizer: Tokenizer
    device: torch.device
    placement: Placement | None = None

    def tell_memory(self) -> None:
        """Says how much memory was taken, where it is limited."""
        if self.placement is not None:
            say(self.placement.told(self.tokenizer.directory))

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What stands before the first token of a text: the tokenizer's own prefix, and where it has none, eos."""
        if self.tokenizer.prefix_ids:
            return self.tokenizer.prefix_ids
        if self.tokenizer.eos_id is None:
            raise UserError(
                f"{self.tokenizer.directory}: the tokenizer has neither a bos nor an eos token to put before a text; set one in tokenizer_config.json."
            )
        return (self.tokenizer.eos_id,)


def load_model(
    directory: Path,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    memory: MemoryOptions | None = None,
    tokens: int = 0,
    logits: int = 1,
) -> Loaded:
    """The model and tokenizer of `directory`, on the GPU where there is one. `dtype` is that of the weights;
    `trust_remote_code` lets code that lies beside the model run. Where `memory` has a limit, a batch of `tokens`, of which
    `logits` are scored, fits into it as well.
    """
    if not (directory / "config.json").is_file():
        raise not_a_model(directory)
    if not trust_remote_code:
        refuse_own_code(directory)
    tokenizer = load(directory)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for name in ("transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    working = partial(working_bytes, tokens=tokens, logits=logits)
    try:
        model, placement = _read(
            directory, dtype, device, trust_remote_code, memory or MemoryOptions(), working
        )
    except UserError:
        raise
    except Exception as error:  # what transformers raises over damaged files depends on the architecture
        raise UserError(
            f"{directory} cannot be loaded as a causal language model: {' '.join(str(error).split())[:300]}"
        ) from error
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < tokenizer.size:
        raise UserError(
            f"{directory}: the model has {rows:,} embedding rows, but the tokenizer has {tokenizer.size:,} tokens; "
            "resize the model with llmforge init-model."
        )
    if device.type == "cpu":
        use_onednn(model)
    return Loaded(model.eval(), tokenizer, device, placement)


def _read(
    directory: Path,
    dtype: str,
    device: torch.device,
    trust_remote_code: bool,
    memory: MemoryOptions,
    working: Callable[[Any], int],
) -> tuple[Any, Placement | None]:
    """The model, and where its parts lie if memory is limited; `working` gives what a batch takes by the configuration."""
    if is_quantized(directory):
        if memory.quantize or memory.limit:
            flag = "--quantize" if memory.quantize else "--memory-limit"
            raise UserError(f"{directory} is quantized already, by bitsandbytes; leave {flag} out.")
        return stored_model(directory, dtype, device, trust_remote_code), None
    weights = check_complete(directory, trust_remote_code)
    if memory.quantize:  # each matrix is checked where it is rounded
        model, plan = quantized_model(directory, weights, memory.quantize, dtype, device, trust_remote_code)
        say(f"{directory.name}: {plan.told(weights, DTYPES[dtype].itemsize)}")
        return model, None
    for tensor in weights.tensors.values():
        tensor.check_finite()
    from transformers import AutoModelForCausalLM

    config = load_config(directory, trust_remote_code)
    placement: Placement | None = None
    where: dict[str, Any] = {}
    if memory.limit is not None:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        placement = place(empty, DTYPES[dtype], directory, memory.limit, working(config))
        where = {"device_map": placement.device_map, "offload_folder": placement.folder.name}
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        config=config,
        torch_dtype=DTYPES[dtype],
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        **where,
    )
    if placement is None:
        return model.to(device), None
    forget_peak()
    return model, placement
