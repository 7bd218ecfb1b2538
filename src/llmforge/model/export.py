"""From a checkpoint to an ordinary Hugging Face model directory, tensor by tensor."""

from pathlib import Path
from typing import BinaryIO

from llmforge.errors import UserError
from llmforge.model.architecture import find_vocabulary_tensors, read_config, with_vocabulary_size
from llmforge.model.files import copy_legal_files, copy_tokenizer, write_configs
from llmforge.model.shards import NewTensor, room_for, write_weights
from llmforge.model.vocabulary import Vocabulary, check_fits
from llmforge.model.weights import Tensor, open_weights
from llmforge.tokenizer import load
from llmforge.workspace import Finished, Outcome, Step, run_step

STEP = "export"


def model_directory(checkpoint: Path) -> Path:
    """The model directory of `checkpoint`: itself, or the `modeling` folder of a checkpoint or of a whole
    run.
    """
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} does not exist; check the path.")
    for directory in (checkpoint / "modeling", checkpoint):
        if (directory / "config.json").is_file():
            return directory
    raise UserError(
        f"{checkpoint} holds no model (no config.json in it or in its modeling folder); check the path."
    )


def export(checkpoint: Path, output: Path, *, overwrite: bool = False) -> Finished:
    """Writes the model of `checkpoint` (`model_directory`), its padding rows cut off, as the step directory
    `output`.
    """
    model = model_directory(checkpoint)
    step = Step(STEP, output, arguments={}, inputs=[model], overwrite=overwrite)
    return run_step(step, lambda partial: _build(partial, output, model))


def _build(partial: Path, output: Path, model: Path) -> Outcome:
    weights, config, tokenizer = open_weights(model), read_config(model), load(model)
    tensors = find_vocabulary_tensors(weights, config)
    vocabulary = check_fits(model, tokenizer)
    if not vocabulary.size <= tensors.rows:
        raise UserError(
            f"{model} has {tensors.rows:,} embedding rows and {vocabulary.size:,} ids; it is damaged."
        )
    names = tensors.names()
    shards = [
        [
            _cut(weights.tensors[name], vocabulary.size)
            if name in names
            else NewTensor.copy(weights.tensors[name])
            for name in shard
            if name not in tensors.aliases
        ]
        for shard in weights.shards
    ]
    with room_for(output, weights.size):
        write_weights(partial, shards, STEP)
        write_configs(partial, with_vocabulary_size(config, vocabulary.size), model)
        copy_tokenizer(model, partial)
        copy_legal_files(model, partial)
    exported = Vocabulary(vocabulary.source, vocabulary.size, vocabulary.size)
    return Outcome(
        outputs={"vocabulary": exported.to_json(), "tokenizer": tokenizer.fingerprint},
        metrics={"rows_cut": tensors.rows - vocabulary.size},
    )


def _cut(tensor: Tensor, rows: int) -> NewTensor:
    """The first `rows` rows of `tensor`."""

    def write(file: BinaryIO) -> None:
        tensor.copy_to(file, rows)

    return NewTensor.made(tensor.name, tensor.dtype, (rows, *tensor.shape[1:]), write)
