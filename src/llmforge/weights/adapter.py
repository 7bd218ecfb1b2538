"""From a training with adapters to an adapter as peft reads it, over the model that the training began with."""

import json
import math
from pathlib import Path
from typing import Any

from llmforge import hub
from llmforge.errors import UsageError, UserError
from llmforge.sizes import refuse_large
from llmforge.steps import Finished, Outcome, Step, manifest_path, read_manifest, run_step
from llmforge.weights.card import write_card
from llmforge.weights.export import STEP, exported_tensor
from llmforge.weights.files import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    ADAPTER_STEP,
    ADAPTER_WEIGHTS,
    copy_file,
    copy_legal_files,
    copy_tokenizer,
)
from llmforge.weights.options import FormatOptions
from llmforge.weights.read import open_weights
from llmforge.weights.verify import verify_adapter
from llmforge.weights.vocabulary import Vocabulary
from llmforge.weights.write import enough_disk_space, write_weights


def adapter_directory(checkpoint: Path) -> Path:
    """The adapter of `checkpoint`: itself, or the `adapter` folder of a checkpoint or of a run, or the one beside its
    `modeling` folder.
    """
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} does not exist; check the path.")
    for directory in (checkpoint / ADAPTER_FOLDER, checkpoint.parent / ADAPTER_FOLDER, checkpoint):
        if (directory / ADAPTER_CONFIG).is_file() and not _is_export(directory):
            return directory
    raise UserError(
        f"{checkpoint} contains no adapter: --format adapter is for trainings with --trainable lora; leave it out to "
        "export the model."
    )


def _is_export(directory: Path) -> bool:
    return manifest_path(directory).is_file() and read_manifest(directory).step == STEP


def export_adapter(
    checkpoint: Path, output: Path, options: FormatOptions, *, overwrite: bool = False, checksums: bool = True
) -> Finished:
    """Writes the adapter of `checkpoint` (see `adapter_directory`) as the step directory `output`, which
    `peft.PeftModel.from_pretrained` loads over the model that the training began with.

    The metrics of a verified export hold `verified`, the largest difference of a logit from the merged weights of the
    checkpoint. Raises `UserError` where the checkpoint has no adapter, or there is no base to verify it with.
    """
    adapter = adapter_directory(checkpoint)
    if options.verify and options.dtype not in ("stored", "float32"):
        raise UsageError(
            f"--verify compares an adapter with merged float32 weights, from which --dtype {options.dtype} differs by its "
            "rounding; leave one of them out."
        )
    inputs = [adapter, *([adapter.parent / "modeling"] if options.verify else [])]
    step = Step(STEP, output, options.arguments(), inputs=inputs, overwrite=overwrite, verify=checksums)
    return run_step(step, lambda partial: _build(partial, output, adapter, options))


def _build(partial: Path, output: Path, adapter: Path, options: FormatOptions) -> Outcome:
    record = read_manifest(adapter, ADAPTER_STEP, needs=("outputs.vocabulary",)).outputs
    vocabulary = Vocabulary(**record["vocabulary"])
    config = _read_config(adapter)
    base = base_of(config)
    tensors = open_weights(adapter, ADAPTER_WEIGHTS).tensors.values()
    planned = [exported_tensor(tensor, tensor.rows, options.dtype) for tensor in tensors]
    parameters = sum(math.prod(tensor.shape) for tensor in planned)
    with enough_disk_space(output, sum(tensor.size for tensor in planned)):
        write_weights(partial, [planned], STEP, ADAPTER_WEIGHTS)
        copy_file(adapter / ADAPTER_CONFIG, partial)
        copy_tokenizer(adapter, partial)
        copy_legal_files(adapter, partial)
        write_card(partial, adapter, output.name, vocabulary, parameters, adapter_of=base.name)
    metrics: dict[str, Any] = {"parameters": parameters}
    if options.verify:
        local = hub.local(base)
        if not local.is_dir():
            raise UserError(
                f"--verify: the model that the adapter was trained on, {base}, is not there; give it back its place, or leave "
                "out --verify."
            )
        merged = adapter.parent / "modeling"
        metrics["verified"] = verify_adapter(merged, partial, local, vocabulary)
    return Outcome(
        outputs={"vocabulary": vocabulary.to_json(), "tokenizer": record["tokenizer"], "base": str(base)},
        metrics=metrics,
    )


def base_of(config: dict[str, Any]) -> Path:
    """The model that an adapter with this configuration belongs to: a path, or `org/name@commit` on the Hub."""
    name, revision = config["base_model_name_or_path"], config.get("revision")
    return Path(f"{name}@{revision}" if revision else str(name))


def _read_config(adapter: Path) -> dict[str, Any]:
    path = adapter / ADAPTER_CONFIG
    try:
        config = json.loads(refuse_large(path).read_text(encoding="utf-8"))
        if not isinstance(config["base_model_name_or_path"], str):
            raise TypeError("base_model_name_or_path is not a text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is not the configuration of an adapter ({error}); train or copy it again."
        ) from error
    return dict(config)
