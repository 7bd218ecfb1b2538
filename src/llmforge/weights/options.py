# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of export, merge and delta."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmforge.errors import UsageError
from llmforge.options import OVERWRITE, TRUST_REMOTE_CODE, Options, group, option
from llmforge.weights import merging

DTYPES = ("stored", "float32", "float16", "bfloat16")
GGUF_DTYPES = (*DTYPES, "q8_0")
GGUF_SUFFIX = ".gguf"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def size_in_bytes(flag: str, text: str) -> int:
    """The number of bytes that `text`, such as 5GB, stands for; a `UsageError` that names `flag` where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip().upper())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"{flag} {text} is not a size; write 5GB or 500MB.")
    return int(float(found[1]) * UNITS[found[2] or ""])


@dataclass(frozen=True)
class FormatOptions(Options):
    """`format` "huggingface" is a directory, "adapter" one of an adapter alone, "gguf" one file for llama.cpp; `max_shard_size` such as "5GB"; `dtype` one of
    "float32", "bfloat16", "float16", for GGUF also "q8_0", or "stored" to keep what the checkpoint has; `verify` compares
    the logits of checkpoint and export before anything is published.
    """

    format: Literal["huggingface", "adapter", "gguf"] = option(
        "huggingface: a directory that transformers and vLLM load; adapter: what --trainable lora trained, for peft and the model "
        "that the training began with; gguf: one file for llama.cpp.",
        "huggingface",
    )

    max_shard_size: str = option(
        "Maximum size of a weight file, such as 5GB; a tensor is never split.", "5GB", metavar="SIZE"
    )
    dtype: str = option(
        "Data type of the weights: float32, bfloat16, float16, or stored (that of the checkpoint); for GGUF also q8_0.",
        "stored",
        metavar=f"[{'|'.join(GGUF_DTYPES)}]",
    )
    quantize: Literal["int8", "int4"] | None = option(
        "Round the linear layers to 8 or 4 bits in the format of bitsandbytes, which transformers and vLLM load: LLM.int8(), or "
        "NF4 in blocks of 32; embedding and head, norms and biases keep --dtype.",
        None,
    )
    verify: bool | None = option(
        "Compare the logits of checkpoint and export, both loaded by transformers, and check what vLLM asks of the export. "
        "By default only the "
        "checksums of a checkpoint that llmforge wrote are verified; --no-verify skips them too.",
        None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = GGUF_DTYPES if self.format == "gguf" else DTYPES
        if self.dtype not in known:
            hint = "; q8_0 is for --format gguf" if self.dtype in GGUF_DTYPES else ""
            raise UsageError(f"--dtype {self.dtype} is not known; choose one of {', '.join(known)}{hint}.")
        if self.format == "gguf" and self.verify:
            raise UsageError("--verify compares what transformers loads; leave it out with --format gguf.")
        if self.format == "gguf" and self.quantize:
            raise UsageError("--quantize is for --format huggingface; for GGUF give --dtype q8_0.")
        if self.format == "adapter" and self.quantize:
            raise UsageError("--quantize is for --format huggingface; leave it out with --format adapter.")
        _ = self.max_shard_bytes

    def arguments(self) -> dict[str, Any]:
        """What decides the output, as arguments of a manifest."""
        values = {**super().arguments(), "max_shard_size": self.max_shard_bytes, "verify": bool(self.verify)}
        if self.format != "huggingface":  # one file, of any size
            del values["max_shard_size"]
        else:  # exports of versions that had no other format stay recognized
            del values["format"]
        if not self.quantize:
            del values["quantize"]
        return values

    @property
    def max_shard_bytes(self) -> int:
        return size_in_bytes("--max-shard-size", self.max_shard_size)


@dataclass(frozen=True)
class ExportOptions(Options):
    """`checkpoint` is a checkpoint, the directory of a training, or a `modeling` folder."""

    checkpoint: Path = option(
        "What to export: a checkpoint, the directory of a training, or a modeling folder.", reads="training"
    )
    output: Path = option("Hugging Face model directory, or GGUF file, to write.", writes="model")
    format: FormatOptions = group(FormatOptions)
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)


@dataclass(frozen=True)
class MergeOptions(Options):
    """`weights` are as many as models, or none."""

    models: list[Path] = option(
        "Models to merge: model directories, checkpoints, or directories of trainings (their final models)."
    )
    output: Path = option("Model directory to write.", writes="model")
    method: str = option(f"{merging.described()}.", "linear", metavar=f"[{'|'.join(merging.methods())}]")
    weights: list[float] = option("A number for each model (default: all equal).", [])
    base: Path | None = option(
        "For --method task-arithmetic: the model that the others were trained from.", None
    )
    checkpoints: int | None = option(
        "Merge this number of the newest checkpoints of each training among --models instead of its final model.",
        None,
        least=1,
    )
    dtype: str = option(
        "Data type of the weights: float32, bfloat16, float16, or stored (that of the model with the most tokens).",
        "stored",
        metavar=f"[{'|'.join(DTYPES)}]",
    )
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype} is not known; choose one of {', '.join(DTYPES)}.")
        if any(not math.isfinite(weight) for weight in self.weights):
            raise UsageError("--weights: must be finite numbers.")
        method = merging.find(self.method)
        if method.needs_base and self.base is None:
            raise UsageError(
                f"--method {self.method} needs --base, the model that the others were trained from."
            )
        if self.base is not None and not method.needs_base:
            raise UsageError(
                f"--base contradicts --method {self.method}; use --method task-arithmetic, or leave it out."
            )


@dataclass(frozen=True)
class DeltaMakeOptions(Options):
    """A model and the one it was tuned from."""

    base: Path = option("Model that the tuned one was trained from.", decides=False, reads="source")
    model: Path = option(
        "The tuned model, with the base's vocabulary or a larger one.", decides=False, reads="model"
    )
    output: Path = option("Delta directory to write.", decides=False, writes="delta")
    overwrite: bool = option(OVERWRITE, False, decides=False)


@dataclass(frozen=True)
class DeltaApplyOptions(Options):
    """A model and what was learned on top of it."""

    base: Path = option("Model that the tuned one was trained from.", decides=False, reads="source")
    delta: Path = option("The delta, from delta make.", decides=False, reads="delta")
    output: Path = option("Directory for the tuned model.", decides=False, writes="model")
    overwrite: bool = option(OVERWRITE, False, decides=False)
