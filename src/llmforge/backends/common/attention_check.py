"""Packed rows against transformers' own computation: which way gives its values for the models of a configuration.

Before each training, and each resume, a small random model of the same configuration (`reduced`: all kinds of layers,
narrow, windows shorter than the documents) computes a few documents in one row as training does, and one by one
with transformers' `eager` attention. A reduced model because no process may have the real one (FSDP), because
weights and documents are then such that attention matters (the output changes where documents see each other, a
window is off by one, or a sink is left out), and because it is float32 on the CPU for kernels that run there: a
difference is a fault and no rounding. It also compares what layers really hand on to the attention, in the installed
version of transformers, rather than what a table says of their class.
"""

import copy
import json
import re
from dataclasses import replace
from typing import Any

import torch

from llmforge.backends.common.attention import FLEX, NAMES, SDPA, register
from llmforge.backends.common.documents import Documents
from llmforge.backends.common.head import apply_in_place
from llmforge.backends.common.packing import Way
from llmforge.backends.common.reduced import reduce
from llmforge.errors import UserError
from llmforge.weights.architecture import SUPPORTED
from llmforge.weights.modules import Logits, find_base, possible_logits

ROWS = ((3, 13, 40), (21, 35))
FEW = 20_000_000  # parameters, at most, of a model that is compared
TOLERANCE = 1e-3  # of the largest hidden state; float32 rounds to about 1e-6
SAME_LOGITS = 1e-5  # of the largest logit
# Layers that hand a state from position to position, by the words of their classes and of `layer_types`.
STATE = re.compile(
    r"(?i:mamba|rwkv|recurrent|lstm|delta_?net|delta_?attention|short_?conv|lightning|linear_?attention|hyena)|SSM",
)
CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.RNNBase)
_FOUND: dict[tuple[str, str], Way] = {}  # by the text of the configuration and the kernel
GROWING = ("dynamic", "longrope")  # rotary kinds whose frequencies depend on the longest position


def find_way(config: Any, name: str) -> Way:
    """The fastest way that gives transformers' own values for models of `config`, with the kernel `name`.

    A `UserError` where there is none: attention that looks ahead, or no way to tell.
    """
    if name not in NAMES.values():
        return Way(name)
    text = type(config).__name__ + json.dumps(config.to_dict(), default=str, sort_keys=True)
    if (text, name) not in _FOUND:
        _FOUND[text, name] = _find_way(config, name)
    return _FOUND[text, name]


def _find_way(config: Any, name: str) -> Way:
    register()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        reference = _reference(config)
        if reference is None:
            raise UserError(
                f"{type(config).__name__}: no small model of this configuration can be made to compare attention "
                f"with transformers' own, so training does not support it; supported are {SUPPORTED}."
            )
        try:
            return replace(_compare(reference, name), logits=_logits(reference))
        except UserError:
            raise
        except Exception as error:  # any class of transformers, in a version in which it does not work
            raise UserError(
                f"{type(reference).__name__}: transformers {_version()} fails to compute a small model of this "
                f"configuration ({type(error).__name__}: {' '.join(str(error).split())[:200]}), so training does not "
                f"support it; supported are {SUPPORTED}."
            ) from error


def _version() -> str:
    import transformers

    return str(transformers.__version__)


def _logits(reference: Any) -> Logits:
    """What the head of `reference` does with its products, by its own logits."""
    ids = torch.randint(1, _few(reference), (1, 20))
    head = reference.get_output_embeddings()
    if head is not None and hasattr(head, "weight"):
        products = head(reference.base_model(input_ids=ids, use_cache=False)[0])
        expected = reference(input_ids=ids, use_cache=False).logits
        for one in possible_logits(reference.config.get_text_config()):
            made = products.clone()
            apply_in_place(made, one)
            if made.shape == expected.shape and _relative(made, expected) <= SAME_LOGITS:
                return one
    raise UserError(
        f"{type(reference).__name__} computes its logits with more than a matrix, a scale and a soft cap, so training "
        f"does not support it; supported are {SUPPORTED}."
    )


def _few(model: Any) -> int:
    return min(100, len(model.get_input_embeddings().weight))


def _reference(config: Any) -> Any:
    """A small model of `config` in float32 with transformers' `eager` attention; None where none can be made."""
    for layers, narrow in ((8, True), (2, True), (8, False), (2, False), (1, False)):
        try:
            small = reduce(config, layers, narrow)
            with torch.device("meta"):
                size = sum(p.numel() for p in _make(small, "eager").parameters())
            if size > FEW:
                continue
            model = _make(small, "eager")
            _strengthen(model)
            model.base_model(input_ids=torch.ones(1, 5, dtype=torch.int64), use_cache=False)
        except Exception:  # any class of transformers, made smaller than it was meant to be
            continue
        return model
    return None


def _make(config: Any, name: str) -> Any:
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation=name, trust_remote_code=False
    )
    find_base(model)
    return model.float().eval()


def _strengthen(model: Any) -> None:
    """Weights with which attention is neither even nor one-hot, and where nothing that is added is zero."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            gain = 1.0 if "embed" in name or "wte" in name else 1.5 * parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, gain)
        elif not parameter.any() or "sink" in name:
            parameter.normal_(0.0, 0.3)


def _compare(reference: Any, name: str) -> Way:
    if reference.base_model is reference:
        raise UserError(
            f"{type(reference).__name__} does not return hidden states without its head, so training does not "
            f"support it; supported are {SUPPORTED}."
        )
    state = _state(reference)
    rows = ROWS if state is None else ((20,),)
    ids = torch.randint(1, _few(reference), (len(rows), sum(rows[0])))
    alone = _alone(reference, ids, rows)
    if not bool(torch.isfinite(alone).all()):
        raise UserError(
            f"{type(reference).__name__} returns values that are not finite, so its attention cannot be compared; supported are {SUPPORTED}."
        )
    _check_causal(reference, ids[:1, -20:])
    growing, kind = _growing(reference.config.get_text_config())
    differs = state or f"the attention of {type(reference).__name__}"
    if state is None:
        # Where the random weights leave no trace of one document in the next, nothing is proved by equal values.
        together = _relative(reference.base_model(input_ids=ids, use_cache=False)[0], alone)
        error, differs = _difference(reference, name, ids, alone)
        if together > 10 * TOLERANCE and error <= _allowed(reference, name, ids, alone):
            return Way(name, growing=growing, kind=kind)
    # One document at a time needs transformers' own attention to be as `eager` has it, nothing more.
    # Not all versions of transformers refuse `sdpa` here for a class without it; all do when they read the weights.
    for own in ("sdpa", "eager") if reference._supports_sdpa else ("eager",):
        try:
            if _relative(_alone(_copy(reference, own), ids, rows), alone) <= TOLERANCE:
                return Way(own, packed=False, state=state, differs=differs, growing=growing, kind=kind)
        except Exception:  # a class without sdpa says so in one of many ways
            continue
    raise UserError(
        f"{differs} of {type(reference).__name__} cannot be computed as transformers does; supported are {SUPPORTED}."
    )


def _alone(model: Any, ids: torch.Tensor, rows: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """(rows, length, width): each document by itself, through transformers alone."""
    outputs = []
    for row, sizes in zip(ids, rows, strict=True):
        parts = [
            model.base_model(input_ids=part[None], use_cache=False)[0] for part in row.split(list(sizes))
        ]
        outputs.append(torch.cat(parts, dim=1))
    return torch.cat(outputs)


def _relative(values: torch.Tensor, expected: torch.Tensor) -> float:
    return float((values.float().cpu() - expected.float().cpu()).abs().max() / expected.abs().max())


def _check_causal(model: Any, ids: torch.Tensor) -> None:
    changed = ids.clone()
    changed[0, -3:] = (changed[0, -3:] + 7) % _few(model)
    before, after = (model.base_model(input_ids=one, use_cache=False)[0] for one in (ids, changed))
    if _relative(after[:, :-3], before[:, :-3]) > TOLERANCE:
        raise UserError(
            f"{type(model).__name__} attends to later tokens (it is not a causal language model), so training "
            "does not support it."
        )


def _state(model: Any) -> str | None:
    """The class of a layer that hands a state on; None where attention alone looks back."""
    called: list[Any] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: called.append(module))
        for module in model.base_model.modules()
        if module is not model.base_model
    ]
    model.base_model(input_ids=torch.ones(1, 5, dtype=torch.int64), use_cache=False)
    for hook in hooks:
        hook.remove()
    for module in called:
        if any(isinstance(child, CONVOLUTIONS) for child in module.children()):
            return type(module).__name__
    for module in called:
        name = type(module).__name__
        if STATE.search(name) and not name.endswith("Norm") and any(True for _ in module.parameters()):
            return name
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    named = [kind for kind in kinds if STATE.search(str(kind)) or kind == "conv"]
    if named or getattr(model, "_is_stateful", False):
        return type(model).__name__
    return None


def _growing(config: Any) -> tuple[int | None, str | None]:
    """From which position rotary frequencies change for all positions, and the kind; (None, None) where never."""
    fields = config.to_dict()
    for key in ("rope_parameters", "rope_scaling"):
        rope = fields.get(key)
        for one in (rope, *rope.values()) if isinstance(rope, dict) else ():
            kind = one.get("rope_type", one.get("type")) if isinstance(one, dict) else None
            if kind in GROWING:
                limit = one.get("original_max_position_embeddings") or fields.get(
                    "original_max_position_embeddings"
                )
                return limit or fields.get("max_position_embeddings"), kind
    return None, None


def _copy(reference: Any, name: str) -> Any:
    model = _make(reference.config, name)
    model.load_state_dict(reference.state_dict())
    return model


def _difference(reference: Any, name: str, ids: torch.Tensor, alone: torch.Tensor) -> tuple[float, str]:
    """How far packed rows are from `alone`, and the class of the first layer whose output differs."""
    device, model = _device(name), None
    whole = f"the attention of {type(reference).__name__}"
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in ROWS]).to(device)
    options = {"position_ids": positions, "use_cache": False, "documents": Documents(ROWS, device)}
    try:
        model = _copy(reference, name).to(device, _dtype(name))
        outputs, hooks = _watch(model)
        error = _relative(model.base_model(input_ids=ids.to(device), **options)[0], alone)
    except Exception:  # classes that take no such keywords, or ask for what no kernel computes
        return float("inf"), whole
    # The second document of row 0, alone.
    begin, end = ROWS[0][0], ROWS[0][0] + ROWS[0][1]
    expected, hooks = _watch(reference)
    reference.base_model(input_ids=ids[:1, begin:end], use_cache=False)
    for hook in hooks:
        hook.remove()
    for layer, values in outputs.items():
        if layer in expected and values.shape[1:2] == ids.shape[1:]:
            own, part = expected[layer], values[:1, begin:end]
            if part.shape == own.shape and not _relative(part, own) <= TOLERANCE:
                return error, _owner(model.base_model, layer)
    return error, whole


def _watch(model: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Outputs of modules by name, in the order in which they end, and the hooks that keep them."""
    outputs: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if torch.is_tensor(tensor) and tensor.dim() == 3:
                outputs.setdefault(name, tensor.detach())

        return keep

    modules = model.base_model.named_modules()
    return outputs, [module.register_forward_hook(hook(name)) for name, module in modules]


def _owner(model: torch.nn.Module, name: str) -> str:
    """The class of the module `name`, or of the nearest around it that is no plain layer of PyTorch."""
    while type(module := model.get_submodule(name)).__module__.startswith("torch.") and name:
        name = name.rpartition(".")[0]
    return type(module).__name__


def _device(name: str) -> torch.device:
    return torch.device("cuda" if name != SDPA and torch.cuda.is_available() else "cpu")


def _dtype(name: str) -> torch.dtype:
    return torch.float32 if name in (SDPA, FLEX) else torch.bfloat16


def _allowed(reference: Any, name: str, ids: torch.Tensor, alone: torch.Tensor) -> float:
    """The tolerance of a kernel: in 16 bits what transformers' own attention is off in them, four times."""
    if _dtype(name) == torch.float32:
        return TOLERANCE
    lowered = _copy(reference, "eager").to(_device(name), _dtype(name))
    return max(TOLERANCE, 4 * _relative(_alone(lowered, ids.to(_device(name)), ROWS), alone))
