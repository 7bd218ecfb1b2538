"""Whether a model directory holds every tensor of its model, in its shape, and no other.

transformers' own reading decides, in whichever version is installed, on tensors without memory: the headers say names
and shapes, and what transformers then calls missing, unexpected or mismatched is refused. So tied heads, prefixes of
base models, experts that version 5 joins and keys that a class ignores mean here what they mean where the model is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.weights.architecture import check_tied
from llmforge.weights.config import CONFIG, load_config, needs_own_code, read_config
from llmforge.weights.files import ADAPTER_CONFIG
from llmforge.weights.read import Weights, open_weights


def check_complete(directory: Path, trust_remote_code: bool = False) -> Weights:
    """The weights of `directory`, after making sure that they are those of the model of its `config.json`.

    Raises `UserError`, which names the first tensor and how many there are, if some are missing, surplus or of another
    shape, for weights that are quantized or an adapter, and for a tied model with another head than its embedding. A
    model whose code lies beside it cannot be checked unless `trust_remote_code` lets that code run; that is said.
    """
    config = read_config(directory)
    weights = open_weights(directory)
    _check_reading(directory, config, weights)
    if needs_own_code(config) and not trust_remote_code:
        warn(
            f"{directory}: the model comes with custom code (auto_map), which is not run, so llmforge cannot check that its "
            "weights are complete; --trust-remote-code runs the code."
        )
        return weights
    import torch
    from transformers import AutoModelForCausalLM

    made = load_config(directory, trust_remote_code)
    with _few_words(), _one_sentence(directory):
        with _at_most(4 * len(weights.tensors) + 1000, directory), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(made, trust_remote_code=trust_remote_code)
        headers = {
            name: torch.empty(tensor.shape, dtype=torch.float32, device="meta")
            for name, tensor in weights.tensors.items()
        }
        try:
            loaded, found = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=headers,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
        except RuntimeError:  # experts that cannot be joined
            _refuse_missing(directory, _lacking(model, weights))
            raise
        wanted = {name: tuple(tensor.shape) for name, tensor in loaded.state_dict().items()}
    # 4.51 gives the names of mismatched tensors, 5 their shapes too.
    differing = {entry if isinstance(entry, str) else entry[0] for entry in found["mismatched_keys"]}
    missing = [name for name in wanted if name in set(found["missing_keys"])]
    if any(name not in weights.tensors for name in (*missing, *differing)):
        missing = _lacking(model, weights) or missing
    _refuse_missing(directory, missing)
    if surplus := sorted(found["unexpected_keys"]):
        raise UserError(
            f"{directory} holds {len(surplus)} tensors that its model ({type(model).__name__}) does not have (the first "
            f"is {surplus[0]}); {CONFIG} and weights do not belong together; copy the model again."
        )
    for name in wanted:
        if name in differing:
            stored = weights.tensors.get(name) or weights.tensors.get(
                name.removeprefix(f"{model.base_model_prefix}.")
            )
            raise UserError(
                f"{stored.path if stored else directory}: {name} has "
                + (f"the shape {stored.shape}, but" if stored else "another shape than")
                + f" {CONFIG} asks for {wanted[name]} ({len(differing)} tensors differ); the files do not belong "
                "together."
            )
    check_tied(weights, config)
    return weights


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether `config` is of a model that gives a text labels or a score instead of continuing it."""
    kinds = config.get("architectures")
    return isinstance(kinds, list) and bool(kinds) and str(kinds[0]).endswith("ForSequenceClassification")


def _check_reading(directory: Path, config: dict[str, Any], weights: Weights) -> None:
    """Refuses what makes transformers read something else than the files of `weights` as they are."""
    if is_classifier(config):
        raise UserError(
            f"{directory} is a model with a head of labels ({config['architectures'][0]}), such as a reward model, and no language model; "
            "give the model that it was made from."
        )
    if config.get("quantization_config"):
        kind = config["quantization_config"]
        method = kind.get("quant_method") if isinstance(kind, dict) else None
        raise UserError(
            f"{directory / CONFIG} says that its weights are quantized ({method or 'quantization_config'}); give the "
            "model in bfloat16, float16 or float32."
        )
    if (directory / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{directory} holds an adapter ({ADAPTER_CONFIG}), which transformers adds to the weights if peft is "
            "installed; merge it into the weights first, or move it away."
        )
    stated = config.get("transformers_weights")
    if stated and [stated] != sorted({tensor.path.name for tensor in weights.tensors.values()}):
        raise UserError(
            f"{directory / CONFIG} names {stated!r} as its weights, which transformers 4 ignores; rename that file "
            "to model.safetensors and remove transformers_weights."
        )


def _refuse_missing(directory: Path, missing: list[str]) -> None:
    if missing:
        raise UserError(
            f"{directory} lacks {len(missing)} tensors of its model (the first is {missing[0]}); copy it again."
        )


def _lacking(model: Any, weights: Weights) -> list[str]:
    """The tensors that `model` would be saved as and that `weights` lacks: their names in files are not those in the
    model where transformers 5 joins experts.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4 joins nothing
        return []
    tied = set(model.all_tied_weights_keys)
    saved = revert_weight_conversion(model, {k: v for k, v in model.state_dict().items() if k not in tied})
    return [name for name in saved if name not in weights.tensors]


@contextmanager
def _at_most(limit: int, directory: Path) -> Iterator[None]:
    """Stops a model that has far more parameters than its files have tensors while it is being made."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise UserError(
                f"{directory / CONFIG} asks for more than {limit:,} tensors, many more than the weights contain; the files "
                "do not belong together."
            )

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _few_words() -> Iterator[None]:
    """Keeps what transformers would report of a load from the terminal."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _one_sentence(directory: Path) -> Iterator[None]:
    """Turns whatever transformers raises over the files of `directory` into a `UserError`: they come from anywhere, and
    what it raises depends on the architecture.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{directory} cannot be read as a causal language model: {' '.join(str(error).split())[:300]}"
        ) from error
