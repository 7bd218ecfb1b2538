"""From a checkpoint to an ordinary Hugging Face model directory, tensor by tensor."""

import math
from pathlib import Path
from typing import Any, BinaryIO

from llmforge.errors import UserError, missing
from llmforge.steps import Finished, Outcome, Step, run_step
from llmforge.tokenizer import load
from llmforge.weights.architecture import find_vocabulary_tensors, with_vocabulary_size
from llmforge.weights.card import write_card
from llmforge.weights.completeness import check_complete
from llmforge.weights.config import load_config, read_config, refuse_own_code, stating_tied
from llmforge.weights.files import copy_code, copy_legal_files, copy_tokenizer, write_configs
from llmforge.weights.floats import NAMES, STORAGE, all_finite, from_float32
from llmforge.weights.options import FormatOptions
from llmforge.weights.quantization.plan import make_plan
from llmforge.weights.quantization.write import Rounder
from llmforge.weights.tensor import Tensor, write_all
from llmforge.weights.verify import verify_export
from llmforge.weights.vllm import reasons_against
from llmforge.weights.vocabulary import Vocabulary, check_fits
from llmforge.weights.write import NewTensor, enough_disk_space, packed, write_weights

STEP = "export"


def model_directory(checkpoint: Path) -> Path:
    """The model directory of `checkpoint`: itself, or the `modeling` folder of a checkpoint or of a run."""
    if not checkpoint.exists():
        raise missing(checkpoint)
    for directory in (checkpoint / "modeling", checkpoint):
        if (directory / "config.json").is_file():
            return directory
    raise UserError(
        f"{checkpoint} contains no model (no config.json in it or in its modeling folder); check the path."
    )


def export(
    checkpoint: Path,
    output: Path,
    options: FormatOptions,
    *,
    overwrite: bool = False,
    checksums: bool = True,
    trust_remote_code: bool = False,
) -> Finished:
    """Writes the model of `checkpoint` (see `model_directory`), its padding cut off, as the step directory `output`.

    With `checksums` every byte of a checkpoint that llmforge wrote is compared with what it wrote before the work begins.
    The metrics of a verified export hold `verified`, the largest difference of a logit, and `vllm`, why vLLM would not load
    it (`vllm.reasons_against`). `trust_remote_code` lets the
    code that lies beside a model run, which is needed to verify it and to tell whether its weights are complete.
    """
    model = model_directory(checkpoint)
    step = Step(STEP, output, options.arguments(), inputs=[model], overwrite=overwrite, verify=checksums)
    return run_step(step, lambda partial: _build(partial, output, model, options, trust_remote_code))


def _build(
    partial: Path, output: Path, model: Path, options: FormatOptions, trust_remote_code: bool
) -> Outcome:
    if options.verify and not trust_remote_code:
        refuse_own_code(model)
    weights, config, tokenizer = check_complete(model, trust_remote_code), read_config(model), load(model)
    tensors = find_vocabulary_tensors(weights, config, trust_remote_code)
    vocabulary = check_fits(model, tokenizer)
    if vocabulary.size > tensors.rows:
        raise UserError(
            f"{model} has {tensors.rows:,} embedding rows for {vocabulary.size:,} ids; it is damaged. Copy it again."
        )
    exported = Vocabulary(vocabulary.source, vocabulary.size, vocabulary.size)
    roles = tensors.names()
    plan = None
    if options.quantize:
        made = load_config(model, trust_remote_code)
        plan = make_plan(model, made, weights, options.quantize, trust_remote_code)
    stored = next(name for name, short in NAMES.items() if short == tensors.embedding.dtype)
    dtype = stored if options.dtype == "stored" else options.dtype
    rounder = Rounder(plan, dtype) if plan is not None else None
    planned: list[NewTensor] = []
    parameters = 0
    for name, tensor in weights.tensors.items():
        if name in tensors.aliases:
            continue
        rows = vocabulary.size if name in roles else tensor.rows
        parameters += rows * math.prod(tensor.shape[1:])
        if rounder is not None and name in rounder.plan.matrices:
            planned += rounder.tensors(tensor)
        else:
            planned.append(exported_tensor(tensor, rows, options.dtype))
    config = with_vocabulary_size(stating_tied(config, tensors.tied), vocabulary.size)
    if options.dtype != "stored":
        config = {**config, "torch_dtype": options.dtype}
        config.pop("dtype", None)
    if plan is not None:
        config["quantization_config"] = plan.settings(dtype)
    with enough_disk_space(output, sum(tensor.size for tensor in planned)):
        write_weights(partial, packed(planned, options.max_shard_bytes), STEP)
        write_configs(partial, config, model)
        copy_tokenizer(model, partial)
        copy_code(model, partial)
        copy_legal_files(model, partial)
        write_card(partial, model, output.name, exported, parameters)
    metrics: dict[str, Any] = {"rows_cut": tensors.rows - vocabulary.size}
    if plan is not None:
        size = sum(tensor.size for tensor in planned)
        metrics["quantized"] = {"bytes": size, "bits_per_weight": round(8 * size / parameters, 3)}
    if options.verify:
        metrics["verified"] = verify_export(model, partial, exported, options.quantize, trust_remote_code)
        metrics["vllm"] = reasons_against(partial, trust_remote_code)
    return Outcome(
        outputs={"vocabulary": exported.to_json(), "tokenizer": tokenizer.fingerprint}, metrics=metrics
    )


def exported_tensor(tensor: Tensor, rows: int, dtype: str) -> NewTensor:
    """The first `rows` rows of `tensor`, converted to `dtype` if they are floating-point numbers."""
    shape = (rows, *tensor.shape[1:]) if tensor.shape else ()
    wanted = tensor.dtype if dtype == "stored" or tensor.dtype not in STORAGE else NAMES[dtype]

    def write(file: BinaryIO) -> None:
        tensor.check_finite(rows)
        if wanted == tensor.dtype:
            tensor.copy_to(file, rows)
        else:
            for _, block in tensor.blocks(rows):
                converted = from_float32(block, wanted)
                if not all_finite(converted, wanted):
                    raise UserError(
                        f"{tensor.path}: {tensor.name} contains values that are too large for --dtype {dtype}; use "
                        "bfloat16."
                    )
                write_all(file, converted)

    if wanted == tensor.dtype:
        return NewTensor(tensor.name, wanted, shape, rows * tensor.row_bytes, write)
    return NewTensor.made(tensor.name, wanted, shape, write)
