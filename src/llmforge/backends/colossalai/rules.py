"""What ColossalAI's plugins can do, and the sentences for what they cannot; nothing is loaded to say so.

This file imports neither torch nor ColossalAI: flags are checked before anything else happens.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from llmforge.errors import UsageError, UserError

if TYPE_CHECKING:
    from llmforge.weights.directory import ModelDirectory

TORCH_DDP, ZERO1, ZERO2, ZERO2_CPU = "torch_ddp", "zero1", "zero2", "zero2_cpu"
GEMINI, GEMINI_AUTO, HYBRID = "gemini", "gemini_auto", "3d"
DIVISOR = 64  # ColossalAI pads vocabularies to multiples of this times tp
PACKAGES = ("colossalai", "transformers")
NEWEST_TRANSFORMERS = (4, 51)


def check_3d(config: Any) -> None:
    zero, tp, pp, sp, mode = config.zero or 0, config.tp, config.pp, config.sp, sequence_mode(config)
    if zero == 2 and pp > 1:
        raise UsageError(f"--zero 2 contradicts --pp {pp}: a pipeline takes --zero 0 or 1.")
    if zero > 0 and config.mixed_precision == "fp32":
        raise UsageError(
            f"--zero {zero} contradicts --mixed-precision fp32 in --plugin 3d; use --zero 0 or zero2."
        )
    if mode in ("ring", "ring_attn"):
        why = "gives wrong gradients in ColossalAI 0.5.0" if mode == "ring" else "cannot keep documents apart"
        raise UsageError(f"--sp-mode {mode} {why}; use --sp-mode all_to_all.")
    if mode == "split_gather":
        if tp == 1:
            raise UsageError(
                "--sp-mode split_gather divides sequences among the ranks of --tp; give --tp 2 or more."
            )
        if sp > 1:
            raise UsageError(
                f"--sp {sp} contradicts --sp-mode split_gather, which uses --tp; use all_to_all."
            )
    if mode == "all_to_all" and sp == 1:
        raise UsageError("--sp-mode all_to_all needs --sp 2 or more, the ranks that share a sequence.")
    if config.pipeline_micro_batch_size is not None and pp == 1:
        raise UsageError(
            "--pipeline-micro-batch-size goes with --pp: it is the number of rows in a pipeline micro-batch."
        )
    rows = config.micro_batch_size * config.gradient_accumulation_steps
    micro = config.pipeline_micro_batch_size or 1
    if pp > 1 and rows % micro:
        raise UsageError(
            f"--pipeline-micro-batch-size {micro} does not divide the {rows} rows of a step and process "
            "(--micro-batch-size times --gradient-accumulation-steps)."
        )
    if pp > 1 and rows // micro < pp:
        raise UsageError(
            f"--pp {pp} needs at least as many micro-batches as stages, but a step has {rows // micro} "
            f"({rows} rows, --pipeline-micro-batch-size {micro}); raise --gradient-accumulation-steps to {-(-pp * micro // config.micro_batch_size)}."
        )


def sequence_mode(config: Any) -> str | None:
    """How 3d cuts sequences: `--sp-mode`, and all_to_all where `--sp` alone is given."""
    if config.sp_mode is not None:
        return str(config.sp_mode)
    return "all_to_all" if config.sp > 1 else None


def product(**sizes: int) -> str:
    """The flags of `sizes` that are not 1, as factors."""
    return " x ".join(f"--{name} {size}" for name, size in sizes.items() if size > 1)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing_packages(plugin: str, versions: Mapping[str, str | None]) -> str | None:
    """The sentence for a machine on which the `PACKAGES` of `versions` cannot run a plugin; None where they can."""
    if versions["colossalai"] is None:
        return (
            f"--plugin {plugin} needs ColossalAI: pip install 'llmforge[colossalai]', or with a torch newer than 2.5 "
            "pip install --no-deps -r requirements/colossalai.txt (docs/colossalai.md)."
        )
    found = versions["transformers"] or "none"
    if tuple(int(word) for word in found.split(".")[:2] if word.isdigit()) > NEWEST_TRANSFORMERS:
        return (
            f"--plugin {plugin} needs transformers 4.51.3: ColossalAI 0.5.0 does not run with {found}; "
            "use a separate environment (docs/colossalai.md), or --plugin ddp or fsdp."
        )
    return None


def check_model_of_3d(
    config: Any, model: "ModelDirectory", processes: int, length: int | None = None
) -> None:
    """The model directory `model` against the way that the flags share it, from its configuration alone; and rows of
    `length` tokens, where it is known.
    """
    tp, pp, sp = config.tp, config.pp, config.sp
    if processes % (tp * pp * sp):
        raise UsageError(
            f"{product(tp=tp, pp=pp, sp=sp)} needs a multiple of {tp * pp * sp} processes, but {processes} were started."
        )
    about = model.stated
    kinds = about.get("architectures") or [about.get("model_type")]
    if "LlamaForCausalLM" not in kinds:
        raise UserError(f"--plugin 3d runs LLaMA models, and {model} is a {kinds[0]}; use zero2 or gemini.")
    heads = about["num_attention_heads"]
    keys = about.get("num_key_value_heads") or heads
    for name, count in (("attention heads", heads), ("key-value heads", keys)):
        if count % tp:
            raise UserError(f"--tp {tp} does not divide the {count} {name} of {model}.")
        if count % (tp * sp):
            raise UserError(f"{product(tp=tp, sp=sp)} does not divide the {count} {name} of {model}.")
    layers = about["num_hidden_layers"]
    if layers < pp:
        raise UserError(f"--pp {pp} has more stages than {model} has layers ({layers}).")
    cut = tp if sequence_mode(config) == "split_gather" else sp
    if sequence_mode(config) and length is not None and length % cut:
        raise UserError(
            f"{cut} ranks cannot share rows of {length} tokens evenly; prepare data of another length."
        )
    if about["vocab_size"] % (DIVISOR * tp):
        raise UserError(
            f"--plugin 3d with --tp {tp} needs a vocabulary that is a multiple of {DIVISOR * tp}, and {model} has "
            f"{about['vocab_size']:,} rows; resize it with llmforge init-model --tp {tp}, or use zero2."
        )
