"""Loading a Hugging Face model directory for measuring."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmforge.errors import UserError
from llmforge.evaluate.products import use_onednn
from llmforge.tokenizer import Tokenizer, load
from llmforge.weights.completeness import check_complete
from llmforge.weights.config import load_config, refuse_own_code

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A causal language model in evaluation mode, its tokenizer, and the device it lies on."""

    model: Any
    tokenizer: Tokenizer
    device: torch.device

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


def load_model(directory: Path, dtype: str = "float32", trust_remote_code: bool = False) -> Loaded:
    """The model and tokenizer of `directory`, on the GPU where there is one. `dtype` is that of the weights;
    `trust_remote_code` lets code that lies beside the model run.
    """
    if not (directory / "config.json").is_file():
        why = "has no config.json" if directory.exists() else "does not exist"
        raise UserError(f"{directory} is not a Hugging Face model directory: it {why}.")
    if not trust_remote_code:
        refuse_own_code(directory)
    tokenizer = load(directory)
    for tensor in check_complete(directory, trust_remote_code).tensors.values():
        tensor.check_finite()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            config=load_config(directory, trust_remote_code),
            torch_dtype=DTYPES[dtype],
            local_files_only=True,
            trust_remote_code=trust_remote_code,
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
    return Loaded(model.to(device).eval(), tokenizer, device)
