"""Writing a model directory as one GGUF file, block of rows by block of rows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.console import progress
from llmforge.errors import UserError
from llmforge.steps import Finished, Outcome, Step, run_step
from llmforge.tokenizer import load
from llmforge.weights.architecture import find_vocabulary_tensors
from llmforge.weights.completeness import check_complete
from llmforge.weights.config import CONFIG, load_config, portable, read_config, refuse_own_code
from llmforge.weights.floats import NAMES, Array, Float32, all_finite, from_float32
from llmforge.weights.gguf.kinds import (
    Kind,
    Value,
    extra_tensors,
    head_width,
    kind_of,
    parameters,
    tensor_name,
)
from llmforge.weights.gguf.vocabulary import tokenizer_fields
from llmforge.weights.options import GGUF_SUFFIX, FormatOptions
from llmforge.weights.tensor import BLOCK_BYTES, Tensor
from llmforge.weights.vocabulary import Vocabulary, check_fits
from llmforge.weights.write import enough_disk_space

Q8_0, Q8_0_ELEMENTS, Q8_0_BYTES = "Q8_0", 32, 34  # a scale of 2 bytes and 32 numbers of 1 byte
FILE_TYPES = {"F32": 0, "F16": 1, Q8_0: 7, "BF16": 32}  # llama.cpp's llama_ftype


@dataclass(frozen=True)
class Part:
    """A tensor of the file: the first `rows` rows of `source` in the dtype `dtype`, `shift` added; with `head`, rows of this
    many are one head whose rotary halves are interleaved.
    """

    name: str
    source: Tensor
    rows: int
    dtype: str
    shift: float = 0.0
    head: int = 0

    @property
    def columns(self) -> int:
        return self.source.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.source.shape[1:])

    @property
    def size(self) -> int:
        """Bytes in the file, without what follows to align the next tensor."""
        elements = math.prod(self.shape)
        if self.dtype == Q8_0:
            return elements // Q8_0_ELEMENTS * Q8_0_BYTES
        return elements * (4 if self.dtype == "F32" else 2)

    def blocks(self) -> Iterator[Array]:
        """The bytes of the tensor, some 16 MB at a time."""
        rows = max(1, BLOCK_BYTES // max(4 * math.prod(self.source.shape[1:]), 1))
        rows = max(self.head, rows // self.head * self.head) if self.head else rows
        for first in range(0, self.rows, rows):
            last = min(first + rows, self.rows)
            values = np.concatenate([block for _, block in self.source.blocks(last, first)])
            yield self._stored(values)

    def _stored(self, values: Float32) -> Array:
        if not np.isfinite(values).all():
            raise UserError(
                f"{self.source.path}: {self.source.name} contains NaN or infinity; the model is damaged or its training "
                "diverged; use another copy or checkpoint."
            )
        if self.head:
            heads = values.reshape(-1, 2, self.head // 2, values.shape[1])
            values = np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)
        if self.shift:
            values = values + np.float32(self.shift)
        if self.dtype == Q8_0:
            from gguf import GGMLQuantizationType
            from gguf.quants import quantize

            made: Array = quantize(values, GGMLQuantizationType.Q8_0)
            return made
        made = from_float32(values, self.dtype)
        if not all_finite(made, self.dtype):
            raise UserError(
                f"{self.source.path}: {self.source.name} contains values that are too large for float16; use --dtype bfloat16."
            )
        return made


def export_gguf(
    model: Path, output: Path, options: FormatOptions, *, overwrite: bool = False, checksums: bool = True
) -> Finished:
    """Writes the model directory `model`, its padding cut off, as the GGUF file `output`, with its manifest beside it.

    Matrices have the dtype of `options` (float32, float16, bfloat16, q8_0; "stored" keeps that of the checkpoint), and all
    else float32, as llama.cpp wants it. A matrix whose rows are no multiple of 32 is float16 where q8_0 is asked for.
    Raises `UserError` for a model or tokenizer of which llama.cpp has no equal; nothing is written then.
    """
    if output.suffix != GGUF_SUFFIX:
        raise UserError(f"--output {output}: with --format gguf the name must end in {GGUF_SUFFIX}.")
    step = Step(
        "export",
        output,
        options.arguments(),
        inputs=[model],
        overwrite=overwrite,
        verify=checksums,
        single_file=True,
    )
    return run_step(step, lambda path: _build(path, output, model, options))


def _build(path: Path, output: Path, model: Path, options: FormatOptions) -> Outcome:
    refuse_own_code(model)
    place = model / CONFIG
    weights, tokenizer = check_complete(model), load(model)
    kind = kind_of(read_config(model), place)
    config = portable(load_config(model).to_dict())
    values = parameters(config, kind, place)
    fields = tokenizer_fields(tokenizer)
    tensors = find_vocabulary_tensors(weights, config)
    vocabulary = check_fits(model, tokenizer)
    wanted = Q8_0 if options.dtype == "q8_0" else NAMES.get(options.dtype, "")
    parts = []
    for name, tensor in weights.tensors.items():
        own = None if name in tensors.aliases else tensor_name(name, kind, place)
        if own is not None:
            rows = vocabulary.size if name in tensors.names() else tensor.rows
            parts.append(_part(own, tensor, rows, wanted, kind, config))
    extra = extra_tensors(config)
    with enough_disk_space(output, sum(part.size for part in parts)):
        _write(
            path, output.stem, kind, {**values, "vocab_size": vocabulary.size}, fields, parts, extra, wanted
        )
    exported = Vocabulary(vocabulary.source, vocabulary.size, vocabulary.size)
    return Outcome(
        outputs={"vocabulary": exported.to_json(), "tokenizer": tokenizer.fingerprint},
        metrics={"rows_cut": tensors.rows - vocabulary.size},
    )


def _part(name: str, tensor: Tensor, rows: int, wanted: str, kind: Kind, config: Mapping[str, Any]) -> Part:
    stem = name.split(".")[-2]
    dtype = "F32"
    if len(tensor.shape) > 1:
        dtype = wanted or (tensor.dtype if tensor.dtype in FILE_TYPES else "F32")
        if dtype == Q8_0 and tensor.shape[-1] % Q8_0_ELEMENTS:
            dtype = "F16"
    head = head_width(config) if kind.interleaved and stem in ("attn_q", "attn_k") else 0
    return Part(name, tensor, rows, dtype, 1.0 if kind.shifted and stem.endswith("norm") else 0.0, head)


def _write(
    path: Path,
    name: str,
    kind: Kind,
    values: Mapping[str, Value],
    fields: Mapping[str, Any],
    parts: list[Part],
    extra: Mapping[str, Float32],
    wanted: str,
) -> None:
    gguf = _library()
    writer = gguf.GGUFWriter(path, kind.architecture)
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    matrices = [part.dtype for part in parts if part.source.shape[1:]]
    writer.add_file_type(FILE_TYPES[wanted or max(set(matrices), key=matrices.count)])
    for key, value in values.items():
        _add(writer, f"{kind.architecture}.{key}", value)
    for key, value in fields.items():
        _add(writer, f"tokenizer.{key}", value)
    for key, array in extra.items():
        writer.add_tensor_info(key, array.shape, array.dtype, array.nbytes)
    for part in parts:
        raw = gguf.GGMLQuantizationType[part.dtype]
        writer.add_tensor_info(part.name, part.shape, np.dtype(np.float32), part.size, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    with progress("export", sum(part.size for part in parts) / 1e6, "MB") as advance:
        writer.write_padding(file, file.tell())
        for array in extra.values():
            array.tofile(file)
            writer.write_padding(file, array.nbytes)
        for part in parts:
            written = 0
            for block in part.blocks():
                file.write(np.ascontiguousarray(block).data)
                written += block.nbytes
            assert written == part.size, f"{part.name}: {written} bytes, not {part.size}"
            writer.write_padding(file, part.size)
            advance(part.size / 1e6)
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:
        writer.add_array(key, value)


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("--format gguf needs the package gguf: pip install 'llmforge[gguf]'.") from None
    return gguf
