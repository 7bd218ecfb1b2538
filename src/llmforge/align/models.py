"""The models of a training on preferences: loaded, checked, and written as model directories."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llmforge.errors import UserError
from llmforge.steps import free_bytes
from llmforge.tokenizer import Tokenizer
from llmforge.tokenizer.chat_template import ChatTemplate
from llmforge.tokenizer.formats.config import TEMPLATE
from llmforge.train.checkpoint import finish_model
from llmforge.weights.architecture import check_length
from llmforge.weights.completeness import check_complete, is_classifier
from llmforge.weights.config import load_config, read_config, refuse_own_code
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.read import open_weights
from llmforge.weights.vocabulary import check_fits

SCORE = "score.weight"


def load_policy(directory: ModelDirectory, length: int, scores: bool) -> Any:
    """The causal model of `directory` in float32 on the CPU; with `scores` a new head of one number in the place of its own.

    Raises `UserError` where its weights are not complete or not finite, where its tokenizer is not the model's, and where
    it has no positions for `length` tokens.
    """
    refuse_own_code(directory.path)
    check_fits(directory.path, directory.tokenizer)
    check_length(directory.config, directory.path, length)
    for tensor in check_complete(directory.path).tensors.values():
        tensor.check_finite()
    import transformers

    config = load_config(directory.path)
    kind = transformers.AutoModelForCausalLM
    if scores:
        config.num_labels = 1
        kind = transformers.AutoModelForSequenceClassification
    return _loaded(kind, directory.path, config)


def load_reward_model(path: Path, tokenizer: Tokenizer, length: int) -> Any:
    """The reward model in `path`, in float32 and in evaluation mode, on the GPU where there is one.

    Raises `UserError` for anything but a complete model with one label, the very `tokenizer`, and positions for `length` tokens.
    """
    if not (path / "config.json").is_file():
        raise UserError(
            f"--reward-model {path} is not a Hugging Face model directory: it has no config.json."
        )
    if not is_classifier(read_config(path)):
        raise UserError(
            f"--reward-model {path} is no reward model (its architecture is not ...ForSequenceClassification); train one by --method reward."
        )
    if ModelDirectory(path).tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"--reward-model {path} has another tokenizer than {tokenizer.directory}; train one from a model with this tokenizer."
        )
    refuse_own_code(path)
    for tensor in open_weights(path).tensors.values():
        tensor.check_finite()
    import transformers

    config = load_config(path)
    if config.num_labels != 1:
        raise UserError(
            f"--reward-model {path} gives {config.num_labels} labels; a reward model gives one number."
        )
    check_length(config, path, length)
    model = _loaded(transformers.AutoModelForSequenceClassification, path, config, complete=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)


def _loaded(kind: Any, path: Path, config: Any, complete: bool = False) -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, found = kind.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # what transformers raises depends on the architecture
        raise UserError(f"{path} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if complete and (lacking := sorted(found["missing_keys"])):
        raise UserError(f"{path} lacks {len(lacking)} tensors (the first is {lacking[0]}); copy it again.")
    return model


def make_tokenizer(tokenizer: Tokenizer, template: ChatTemplate) -> Any:
    """transformers' object for `tokenizer`, whose eos token is the one that ends an answer in `template`."""
    import tokenizers
    import transformers

    text = json.dumps(tokenizer.definition.json, ensure_ascii=False)
    named = {token["id"]: token["content"] for token in tokenizer.definition.json["added_tokens"]}
    ends = template.end_ids()
    eos = ends[0] if len(ends) == 1 else tokenizer.eos_id
    if eos is None:
        raise UserError(
            f"{template.source} ends answers with no special token, and {tokenizer.directory} has no eos token, so a model would not "
            "learn to stop; give another one by --chat-template."
        )
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else eos
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(text), eos_token=named[eos], pad_token=named[pad]
    )
    made.padding_side = "left"
    return made


def idle_ids(directory: ModelDirectory) -> list[int]:
    """The rows of the embedding that belong to no token: they must not be sampled."""
    tokens = {i for i, piece in enumerate(directory.tokenizer.pieces()) if piece}
    return [i for i in range(directory.vocabulary.padded) if i not in tokens]


def write_model(model: Any, directory: Path, origin: ModelDirectory, template: str | None, pad: int) -> None:
    """Writes `model`, trained from `origin`, as the model directory `directory`, with the tokenizer and the other files of
    `origin`, and the chat template `template` if one is given. A head of one number pads with the token `pad`.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(directory, max_shard_size="5GB")
    for tensor in open_weights(directory).tensors.values():
        tensor.check_finite()
    files = dict(origin.side_files)
    if template is not None:
        files[TEMPLATE] = template.encode()
    outputs: dict[str, Any] = {"tokenizer": origin.tokenizer.fingerprint}
    if is_classifier({"architectures": [type(model).__name__]}):
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": pad}
        stated = {**origin.stated, **labels, "architectures": [type(model).__name__]}
        files["config.json"] = json.dumps(stated).encode()
        files.pop("generation_config.json", None)
    else:
        outputs["vocabulary"] = origin.vocabulary.to_json()
    for name in ("config.json", "generation_config.json"):  # transformers' own, in the form of its version
        (directory / name).unlink(missing_ok=True)
    finish_model(directory, files, outputs)


def check_space(output: Path, model: Any, checkpoints: bool) -> None:
    """Refuses an `output` where the disk has not enough space for the model, and two checkpoints with AdamW's two moments."""
    size = 4 * sum(parameter.numel() for parameter in model.parameters()) * (7 if checkpoints else 1)
    if free_bytes(output.parent) < size:
        raise UserError(
            f"not enough disk space for {output}: it needs up to {size / 1e9:.3f} GB and {free_bytes(output.parent) / 1e9:.3f} GB are "
            f"free{' (--save-interval 0 needs a seventh)' if checkpoints else ''}; free some, or choose another output."
        )


def scores_of(model: Any, sequences: Sequence[Sequence[int]], batch: int = 8) -> list[float]:
    """What the reward `model` gives each of `sequences` of ids."""
    found: list[float] = []
    pad = model.config.pad_token_id
    if pad is None:  # the score is that of the last token, which padding would hide
        pad, batch = 0, 1
    with torch.no_grad():
        for first in range(0, len(sequences), batch):
            some = sequences[first : first + batch]
            width = max(map(len, some))
            ids = torch.full((len(some), width), pad)
            mask = torch.zeros((len(some), width), dtype=torch.long)
            for row, one in enumerate(some):
                ids[row, : len(one)] = torch.tensor(list(one))
                mask[row, : len(one)] = 1
            device = next(model.parameters()).device
            found += (
                model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].float().tolist()
            )
    return found
