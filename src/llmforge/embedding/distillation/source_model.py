"""The source model as a function of ids: its hidden states after some layers, new ids by rows of their own."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from llmforge.embedding.rows import Int64
from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer
from llmforge.weights.config import load_config
from llmforge.weights.memory import free_memory
from llmforge.weights.modules import Logits, decoder_layers, find_base, possible_logits
from llmforge.weights.read import open_weights

SAME_LOGITS = 1e-3


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose states are wanted."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


class GrownEmbedding(torch.nn.Module):
    """The embedding of a model for ids of a larger vocabulary: `rows` [new tokens, width] are those of ids from `size` on.

    New rows go through the forward pass of the old embedding too, which may scale them (Gemma).
    """

    def __init__(self, old: Any, size: int) -> None:
        super().__init__()
        self.old, self.size = old, size
        self.rows: torch.Tensor | None = None
        old.padding_idx = None  # an id of the old table, and here of no row

    @property
    def weight(self) -> torch.Tensor:
        """What models ask for its dtype and device."""
        weight: torch.Tensor = self.old.weight
        return weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[..., width] for ids [...]."""
        new = ids >= self.size
        made: torch.Tensor = self.old(torch.where(new, 0, ids))
        if self.rows is None:
            return made
        resized = torch.func.functional_call(
            self.old, {"weight": self.rows}, (torch.where(new, ids - self.size, 0),)
        )
        return torch.where(new[..., None], resized.to(made.dtype), made)


class SourceModel:
    """The causal model beside `tokenizer` in float32, all weights frozen; on the GPU where there is one, with products in
    bfloat16. `start_ids` stand before every text.
    """

    def __init__(self, tokenizer: Tokenizer, trust_remote_code: bool) -> None:
        import transformers

        directory = self.directory = tokenizer.directory
        self.start_ids = tokenizer.prefix_ids or ((tokenizer.eos_id,) if tokenizer.eos_id is not None else ())
        if not self.start_ids:
            raise UserError(
                f"{directory}: the tokenizer has neither a bos nor an eos token to begin a text with."
            )

        transformers.utils.logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _check_memory(directory, self.device)
        self.causal: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            config=load_config(directory, trust_remote_code),
            torch_dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
        find_base(self.causal)
        self.causal.requires_grad_(False).to(self.device).eval()
        self.layers = decoder_layers(self.causal)
        self.head: Any = self.causal.get_output_embeddings()
        self.size = tokenizer.size
        self.embedding = GrownEmbedding(self.causal.get_input_embeddings(), self.size)
        self.causal.set_input_embeddings(self.embedding)

    @property
    def a_third(self) -> int:
        """A third of the layers, where a word's parts have become one (arXiv 2510.21954)."""
        return max(1, len(self.layers) // 3)

    @property
    def width(self) -> int:
        """Elements of an embedding row."""
        return int(self.embedding.weight.shape[1])

    def states(self, ids: Int64, layers: int | None, rows: torch.Tensor | None = None) -> torch.Tensor:
        """[batch, length, hidden size] after the first `layers` layers for `ids` [batch, length]; None: what the head is
        given. `rows` are those of new ids.
        """
        self.embedding.rows = rows
        tensor = torch.from_numpy(ids).to(self.device)
        on_gpu = self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            if layers is None:
                return self._base(tensor)
            with _stopping_behind(self.layers[layers - 1]):
                try:
                    self._base(tensor)
                except _ReachedError as reached:
                    return reached.states
        raise UserError(
            f"{self.directory}: its layers do not compute one after the other, so hidden states cannot be compared."
        )

    def _base(self, ids: torch.Tensor) -> torch.Tensor:
        # Padding is on the right and attention is causal, so no state that is looked at sees it.
        states: torch.Tensor = self.causal.base_model(input_ids=ids, use_cache=False)[0]
        return states

    def logits_are(self) -> Logits:
        """What the head does with its products; a `UserError` where that is no scale and no soft cap."""
        ids = torch.arange(min(20, self.size), device=self.device)[None]
        with torch.inference_mode():
            self.embedding.rows = None
            products = self.head(self.causal.base_model(input_ids=ids, use_cache=False)[0]).float()
            expected = self.causal(input_ids=ids, use_cache=False).logits.float()
            for one in possible_logits(self.causal.config.get_text_config()):
                made = apply(products, one)
                if (made - expected).norm() <= SAME_LOGITS * expected.norm():
                    return one
        raise UserError(
            f"{self.directory} makes its logits otherwise than by a matrix, a scale and a soft cap; its head cannot be distilled, "
            "its embedding can: --distill-sides input."
        )


def _check_memory(directory: Path, device: torch.device) -> None:
    """Refuses a model whose weights do not fit in float32."""
    tensors = open_weights(directory).tensors.values()
    needed = 4 * sum(math.prod(tensor.shape) for tensor in tensors)
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else free_memory()
    if needed > free:
        raise UserError(
            f"{directory} needs {needed / 1e9:.3f} GB of memory to be computed with in float32, and {free / 1e9:.3f} GB are free; "
            "use a machine with more, or an --init that does not run the model, such as subtoken-mean."
        )


def apply(products: torch.Tensor, logits_are: Logits) -> torch.Tensor:
    """Logits of the products of states and head."""
    if logits_are.softcap is None:
        return products * logits_are.scale if logits_are.scale != 1.0 else products
    return torch.tanh(products * (logits_are.scale / logits_are.softcap)) * logits_are.softcap


@contextmanager
def _stopping_behind(layer: Any) -> Iterator[None]:
    def stop(_module: Any, _inputs: Any, output: Any) -> None:
        raise _ReachedError(output[0] if isinstance(output, tuple) else output)

    hook = layer.register_forward_hook(stop)
    try:
        yield
    finally:
        hook.remove()
