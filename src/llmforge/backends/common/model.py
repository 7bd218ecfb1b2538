"""Loading a causal model for training, and the module that computes a micro-batch's loss."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from llmforge.backends.base import MicroBatch
from llmforge.backends.common import attention, packing
from llmforge.backends.common.attention_check import find_way
from llmforge.backends.common.documents import Documents
from llmforge.backends.common.head import chunked_cross_entropy
from llmforge.errors import UserError
from llmforge.weights.completeness import check_complete
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.modules import decoder_layers, find_base


def load_model(source: ModelDirectory, attention_name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The causal model of a directory, in `dtype` on the CPU. No code of the directory is run."""
    way = find_way(source.config, attention_name)
    model = _make(source, way.name, dtype, "from_pretrained")
    packing.install(model, way)
    return model


def empty_model(source: ModelDirectory, attention_name: str) -> Any:
    """The same in float32 without weights: its parameters are on the meta device. Buffers, which are computed
    rather than loaded, have their values.
    """
    way = find_way(source.config, attention_name)
    with parameters_on_meta():
        model = _make(source, way.name, torch.float32, "from_config")
    packing.install(model, way)
    return model


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made inside have parameters without memory; one at a time exists while its module is made."""

    def strip(_module: Any, _name: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta:  # one that is tied must stay the same object
            return parameter
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(strip)
    try:
        yield
    finally:
        hook.remove()


def _make(source: ModelDirectory, attention_name: str, dtype: torch.dtype, how: str) -> Any:
    import transformers
    from transformers.utils import logging

    attention.register()
    logging.disable_progress_bar()
    # transformers renamed the argument in 4.56.
    name = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"
    options = {name: dtype, "attn_implementation": attention_name}
    config, weights = copy.deepcopy(source.config), check_complete(source.path)
    try:
        if how == "from_config":
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
        else:
            for tensor in weights.tensors.values():
                tensor.check_finite()
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(source), config=config, local_files_only=True, trust_remote_code=False, **options
            )
    except UserError:
        raise
    except Exception as error:  # what transformers raises over damaged files depends on the architecture
        raise UserError(
            f"{source} cannot be read as a causal language model: {' '.join(str(error).split())[:300]}"
        ) from error
    find_base(model)
    decoder_layers(model)
    model.config.use_cache = False
    # Rows are packed: the token that a model pads with (often eos) is one like others, and learns like others.
    model.get_input_embeddings().padding_idx = None
    return model


def own_memory(causal: torch.nn.Module) -> None:
    """Copies weights out of the files that transformers has mapped: files that are cut or overwritten later would end
    the process, or change the weights that are not trained.
    """
    for parameter in causal.parameters():
        parameter.data = parameter.data.clone()


class CausalLoss(torch.nn.Module):
    """A causal model with its loss: the only module that data-parallel wrappers see, so that the head runs
    inside them.
    """

    def __init__(
        self, causal: Any, dtype: torch.dtype, chunk: int, trained_rows: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.causal = causal
        self.dtype, self.chunk, self.trained_rows = dtype, chunk, trained_rows
        self.logits_are = packing.way_of(causal).logits
        self.teacher: Any = (
            None  # adds to the loss of batches with `distilled`; no module, so that nobody trains it
        )

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss (a scalar with gradients; with that of the teacher) and every position's loss, (rows * length,) float32,
        without.
        """
        hidden = self.causal.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            documents=Documents(batch.lengths, batch.input_ids.device, batch.padded),
        ).last_hidden_state
        hidden = hidden.flatten(0, 1)
        total, each = self.head(hidden, batch.targets.flatten(), batch.kept)
        if batch.distilled is not None:
            head, all_rows = self.causal.get_output_embeddings(), self.trained_rows is None
            extra = self.teacher.loss(batch, hidden, head.weight, head.bias, self.logits_are, all_rows)
            total = total + extra
        return total, each

    def head(
        self, hidden: torch.Tensor, targets: torch.Tensor, kept: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same from the last hidden states, (rows * length, width)."""
        head = self.causal.get_output_embeddings()
        return self.cross_entropy(hidden, head.weight, head.bias, targets, kept)

    def cross_entropy(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        kept: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return chunked_cross_entropy(
            hidden,
            weight,
            bias,
            targets,
            dtype=self.dtype,
            chunk=self.chunk,
            trained_rows=self.trained_rows,
            logits_are=self.logits_are,
            kept=kept,
        )


def enable_recomputation(causal: Any) -> None:
    """Recomputes each layer's activations in the backward pass (arXiv 1604.06174)."""
    # transformers renamed the method.
    enable = getattr(causal, "activation_checkpointing_enable", None) or causal.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def noise_hook(alpha: float) -> Any:
    """Adds uniform noise of size alpha / sqrt(length x width) to the embeddings in training (arXiv
    2310.05914).
    """

    def add_noise(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        size = alpha / math.sqrt(output.shape[1] * output.shape[2])
        return output + torch.zeros_like(output).uniform_(-size, size)

    return add_noise
