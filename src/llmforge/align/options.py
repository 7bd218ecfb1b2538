# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of train-preferences. Imports neither torch nor TRL."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from llmforge.align.methods import described, methods, option_groups
from llmforge.align.methods.base import Method
from llmforge.dataset.options import PrepareOptions
from llmforge.errors import UsageError
from llmforge.options import (
    OVERWRITE,
    SEED,
    TEXTS_HELP,
    Options,
    group,
    option,
    options_of,
    same_as,
    value_of,
)
from llmforge.train.options import TrainOptions

T = TypeVar("T", bound=Options)
MethodOptions = option_groups()
SAMPLERS = " and ".join(name for name, one in methods().items() if one.rows == "prompts")
RUN, BATCHES, OPTIMIZER, SAMPLING, SAVING = (
    "The run",  # the first three as of train
    "Batches",
    "Optimizer and schedule",
    f"Sampling and rewards ({SAMPLERS})",
    "Saving and evaluation",
)


@dataclass(frozen=True)
class SamplingOptions(Options):
    """How completions are sampled and rewarded, for the methods that read prompts."""

    reward_model: Path | None = option(
        "Reward model, from --method reward (its OUTPUT/modeling), or any with one label and the tokenizer of --model.",
        None,
        panel=SAMPLING,
        decides=False,
    )
    rules: Path | None = option(
        "Rules that reward completions, YAML or JSON (docs/preferences.md); with --reward-model, both are added.",
        None,
        panel=SAMPLING,
        decides=False,
    )
    max_new_tokens: int = option("Longest completion in tokens.", 128, panel=SAMPLING, least=1)
    temperature: float = option("Temperature of sampling.", 1.0, panel=SAMPLING, least=0.01)
    max_kl: float | None = option(
        "Refuse a model whose KL divergence from the starting model, in nats per token, exceeded this at any step.",
        None,
        panel=SAMPLING,
        least=0,
    )


@dataclass(frozen=True)
class PreferenceOptions(Options):
    """A training on preferences; None where the method has its own default."""

    method: str = option(f"{described()}.", choices=tuple(methods()), panel=RUN)
    model: Path = option(
        "Model directory to start from, tuned on answers already.", panel=RUN, decides=False, reads="model"
    )
    data: list[str] = option(
        f"Records of prompt, chosen and rejected, or of prompts for {SAMPLERS}: {TEXTS_HELP}.",
        panel=RUN,
        decides=False,
    )
    output: Path = option(
        "Directory for metrics and the final model (OUTPUT/modeling).",
        panel=RUN,
        decides=False,
        writes="training",
    )
    chat_template: Path | None = option(
        "Chat template in place of the model's own: a Jinja file, or chatml, llama3 or ziya. The trained model gets it.",
        None,
        panel=RUN,
        decides=False,
    )
    max_rejected: float = same_as(
        PrepareOptions,
        "max_rejected",
        text="Fraction of unusable records above which the command fails.",
        panel=RUN,
    )
    seed: int = option(SEED, 42, panel=RUN)
    num_epochs: int = same_as(TrainOptions, "num_epochs")
    max_steps: int | None = same_as(TrainOptions, "max_steps")

    micro_batch_size: int = option(
        f"Pairs, or prompts of {SAMPLERS}, per forward pass.", 4, panel=BATCHES, least=1
    )
    gradient_accumulation_steps: int = same_as(TrainOptions, "gradient_accumulation_steps", argument="")
    max_length: int = option(
        f"Longest prompt with its answer, in tokens (prompt alone for {SAMPLERS}); longer records are rejected, none is cut.",
        1024,
        panel=BATCHES,
        least=2,
    )
    gradient_checkpointing: bool = same_as(TrainOptions, "gradient_checkpointing", panel=BATCHES, argument="")

    learning_rate: float | None = option(
        f"Peak learning rate (default: {', '.join(f'{one.learning_rate:g} for {name}' for name, one in methods().items())}).",
        None,
        panel=OPTIMIZER,
        least=0,
    )
    schedule: Literal["linear", "cosine", "constant"] = option(
        "Learning rate schedule after warmup.", "linear", panel=OPTIMIZER
    )
    warmup_steps: int = option("Number of warmup steps.", 0, panel=OPTIMIZER, least=0)
    weight_decay: float = option("Weight decay.", 0.0, panel=OPTIMIZER, least=0)
    gradient_clipping: float = same_as(TrainOptions, "gradient_clipping")
    beta: float | None = option(
        "Weight of staying close to the starting model (default: "
        f"{', '.join(f'{one.beta:g} for {name}' for name, one in methods().items() if one.beta is not None)}).",
        None,
        panel=OPTIMIZER,
        least=0,
    )
    methods: Any = group(MethodOptions)
    sampling: SamplingOptions = group(SamplingOptions)

    save_interval: int = option(
        "Steps between checkpoints, from which a killed run continues; 0 for none.",
        100,
        panel=SAVING,
        decides=False,
        least=0,
    )
    eval_data: list[str] = option(
        "Pairs that are held out; the trained model is measured on them.", [], panel=SAVING, decides=False
    )
    overwrite: bool = option(OVERWRITE, False, panel=SAVING, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UsageError("--data is missing.")
        chosen = self.chosen
        for name, options in self._of_methods().items():
            if name != self.method:
                for one in options_of(type(options)):
                    if value_of(options, one) != one.default:
                        raise UsageError(f"{one.flag} is for --method {name}; give both or neither.")
        if chosen.rows == "pairs":
            for one in options_of(SamplingOptions):
                if value_of(self.sampling, one) != one.default:
                    raise UsageError(f"{one.flag} is for --method {SAMPLERS}, not for {self.method}.")
        else:
            if self.eval_data:
                raise UsageError(
                    f"--eval-data holds pairs, and --method {self.method} reads prompts; leave it out."
                )
            if self.sampling.reward_model is None and self.sampling.rules is None:
                raise UsageError(
                    f"--method {self.method} needs --reward-model or --rules: what rewards completions."
                )
        if self.beta is not None and chosen.beta is None:
            raise UsageError(f"--beta has no effect with --method {self.method}; leave it out.")
        if self.sampling.max_kl is not None and self.resolved_beta == 0:
            raise UsageError("--max-kl needs --beta above 0: the divergence is not computed without.")

    @property
    def chosen(self) -> Method:
        return methods()[self.method]

    @property
    def resolved_beta(self) -> float | None:
        return self.chosen.beta if self.beta is None else self.beta

    @property
    def resolved_rate(self) -> float:
        return self.chosen.learning_rate if self.learning_rate is None else self.learning_rate

    def of(self, kind: type[T]) -> T:
        """The options that a method has of its own, `kind` being their class."""
        (found,) = (options for options in self._of_methods().values() if isinstance(options, kind))
        return found

    def arguments(self) -> dict[str, Any]:
        """What decides the result: of the options of methods those of the chosen one."""
        idle = {
            one.argument
            for name, options in self._of_methods().items()
            if name != self.method
            for one in options_of(type(options))
        }
        if self.chosen.rows == "pairs":
            idle |= {one.argument for one in options_of(SamplingOptions)}
        found = {**super().arguments(), "beta": self.resolved_beta, "learning_rate": self.resolved_rate}
        return {name: value for name, value in found.items() if name not in idle}

    def _of_methods(self) -> dict[str, Options]:
        return {name.replace("_", "-"): options for name, options in vars(self.methods).items()}
