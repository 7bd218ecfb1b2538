# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of train, for the command line and YAML files alike.

`decides` says whether an option decides the bytes of the result or only how and where the run continues. This file
imports no torch: a finished run says so at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmforge.backends import registry
from llmforge.backends.common import optimizers
from llmforge.backends.common.devices import CPU_HEAD_CHUNK
from llmforge.dataset.options import parse_mix
from llmforge.errors import UsageError
from llmforge.options import SEED, Options, Result, group, option, options_of, value_of
from llmforge.train.lora_options import LoraOptions
from llmforge.train.question_options import QuestionOptions
from llmforge.train.rates import RateOptions
from llmforge.train.retention import RetentionOptions
from llmforge.train.schedule import SCHEDULES
from llmforge.train.windows import check_windows, parse_windows, read_windows

RUN, BATCHES, OPTIMIZER, MODEL, ENGINE, GUARDS, SAVING, WATCHING, COLOSSAL_LLAMA = (
    "The run",
    "Batches",
    "Optimizer and schedule",
    "What is trained",
    "Backend",
    "Bad steps",
    "Saving and resuming",
    "Evaluation and logging",
    "From Colossal-LLaMA",
)


@dataclass(frozen=True)
class TrainOptions(Options):
    """Everything that `llmforge train` can be told; the checks of `__post_init__` name the flags that
    contradict.
    """

    model: Path = option("Model directory to start from.", panel=RUN, decides=False, reads="model")
    data: list[Path] = option(
        "Outputs of prepare-data, or parts of them (OUTPUT/arrow/part-00000).",
        panel=RUN,
        decides=False,
        reads="dataset",
    )
    output: Path = option(
        "Directory for checkpoints, metrics and the final model.", panel=RUN, decides=False, writes="training"
    )
    seed: int = option(SEED, 42, panel=RUN)
    num_epochs: int = option("Number of epochs.", 1, panel=RUN, least=1)
    max_steps: int | None = option(
        "Stop after this number of optimizer steps; the schedule ends there too.", None, panel=RUN, least=1
    )
    time_limit: str | None = option(
        "Save and exit after this time: seconds, or H:MM:SS.", None, panel=RUN, decides=False
    )
    dry_run: bool = option(
        "Show memory, steps and time of the run, and stop.", False, panel=RUN, decides=False
    )

    micro_batch_size: int = option("Rows per forward pass and process.", 2, panel=BATCHES, least=1)
    gradient_accumulation_steps: int = option(
        "Forward passes per optimizer step.", 1, panel=BATCHES, least=1, argument="accumulation_steps"
    )
    max_length: int | None = option(
        "Tokens per row: checked against the dataset, which decides it.", None, panel=BATCHES, least=1
    )
    mix: str | None = option(
        "Proportions of rows by category, such as zh=0.7,en=0.3; 0 leaves one out (default: those of the dataset).",
        None,
        panel=BATCHES,
        parse=lambda place, items: ",".join(items) if parse_mix(place, items) else None,
        many=True,
        metavar="CATEGORY=WEIGHT...",
    )
    mix_later: str | None = option(
        "Other proportions from a step on, such as 500:zh=0.9,en=0.1; several may be given, by rising steps.",
        None,
        panel=BATCHES,
        parse=parse_windows,
        many=True,
        metavar="STEP:CATEGORY=WEIGHT...",
    )
    cross_document_attention: bool = option(
        "Let documents in a row attend to each other, as Colossal-LLaMA does.", False, panel=BATCHES
    )

    optimizer: str = option(
        f"{' or '.join(optimizers.names())}. muon trains the matrices of the layers and AdamW the rest, with --plugin native "
        "or ddp; for models pretrained with AdamW, as most are, it is worse than AdamW (arXiv 2605.10468).",
        "adamw",
        panel=OPTIMIZER,
    )
    learning_rate: float = option("Peak learning rate.", 3e-4, panel=OPTIMIZER, least=0, argument="lr")
    schedule: str = option(
        f"Learning rate schedule after warmup: {', '.join(SCHEDULES)}. wsd is warmup-stable-decay.",
        "cosine",
        panel=OPTIMIZER,
    )
    warmup_steps: int | None = option(
        "Number of warmup steps (default: 2.5 % of all).", None, panel=OPTIMIZER, least=0
    )
    min_lr_ratio: float = option(
        "Minimum learning rate, as a fraction of the peak.", 0.1, panel=OPTIMIZER, least=0, most=1
    )
    weight_decay: float = option("Weight decay; norms and biases never decay.", 0.1, panel=OPTIMIZER, least=0)
    embedding_decay: bool = option("Apply weight decay to embeddings too.", True, panel=OPTIMIZER)
    beta1: float = option("AdamW beta1.", 0.9, panel=OPTIMIZER, least=0, most=1)
    beta2: float = option("AdamW beta2.", 0.95, panel=OPTIMIZER, least=0, most=1)
    rates: RateOptions = group(RateOptions)
    gradient_clipping: float = option("Maximum gradient norm; 0 for none.", 1.0, panel=OPTIMIZER, least=0)

    trainable: str = option(
        "all, lora, or a list of: embeddings or new-embeddings, and layers such as 0-3 or 28-, or lora,new-embeddings.",
        "all",
        panel=MODEL,
    )
    lora: LoraOptions = group(LoraOptions)
    retention: RetentionOptions = group(RetentionOptions)
    use_neft: bool = option("Add NEFTune noise to the embeddings.", False, panel=MODEL)
    neft_alpha: float = option("Scale of the NEFTune noise.", 5.0, panel=MODEL, least=0)

    plugin: str = option(
        f"Backend: auto, {', '.join(registry.OWN)}, or one of another package (llmforge doctor lists them). auto picks "
        "native for one process, and ddp or fsdp for several.",
        "auto",
        panel=ENGINE,
        decides=False,
    )
    tp: int = option("3d: tensor-parallel size.", 1, panel=ENGINE, decides=False, least=1)
    pp: int = option(
        "3d: pipeline-parallel size (number of stages).", 1, panel=ENGINE, decides=False, least=1
    )
    sp: int = option("3d: sequence-parallel size.", 1, panel=ENGINE, decides=False, least=1)
    sp_mode: Literal["split_gather", "all_to_all", "ring", "ring_attn"] | None = option(
        "3d: split_gather divides rows among the ranks of --tp, all_to_all among those of --sp "
        "(default: all_to_all if --sp is given).",
        None,
        panel=ENGINE,
        decides=False,
    )
    zero: int | None = option(
        "3d: ZeRO stage over data-parallel ranks: 0, 1 or 2 (default: 0).", None, panel=ENGINE, decides=False
    )
    pipeline_micro_batch_size: int | None = option(
        "3d with --pp: rows per pipeline micro-batch (default: 1). Each data-parallel rank reads "
        "--micro-batch-size x --gradient-accumulation-steps rows per step.",
        None,
        panel=ENGINE,
        decides=False,
        least=1,
    )
    rank_timeout: float = option(
        "Seconds without a heartbeat of a rank after which the run ends; 0 for never.",
        300.0,
        panel=ENGINE,
        decides=False,
        least=0,
    )
    rehearse: bool = option(
        "Run a ColossalAI plugin on the CPU with gloo: same code, same flags, no GPU.",
        False,
        panel=ENGINE,
        decides=False,
    )
    mixed_precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "Precision; auto is bf16 if the device supports it, else fp32.", "auto", panel=ENGINE
    )
    attention: Literal["auto", "sdpa", "flash", "flash3", "varlen", "flex"] = option(
        "Attention kernel; auto is the fastest available, but never flash3, which needs an H100 or H200.",
        "auto",
        panel=ENGINE,
    )
    use_flash_attn: bool = option("Use flash-attn if it is installed.", False, panel=ENGINE)
    gradient_checkpointing: bool = option(
        "Recompute activations instead of keeping them.", False, panel=ENGINE, argument="use_grad_checkpoint"
    )
    compile: bool = option("Compile the layers with torch.compile.", False, panel=ENGINE)
    head_chunk: int | None = option(
        "Number of tokens whose logits are in memory at once (default: 512; on a GPU what 0.7 GB hold).",
        None,
        panel=ENGINE,
        least=1,
    )

    on_spike: Literal["warn", "skip", "rollback"] = option(
        "On a spike of loss or gradient norm: warn, skip the step, or roll back to the last checkpoint and skip the data.",
        "warn",
        panel=GUARDS,
    )
    spike_threshold: float = option(
        "Number of standard deviations above the running mean that make a spike.", 6.0, panel=GUARDS, least=0
    )
    max_bad_steps: int = option(
        "Stop after this number of consecutive skipped steps.", 10, panel=GUARDS, least=1
    )

    save_interval: int = option(
        "Steps between checkpoints; 0 for none.", 1000, panel=SAVING, decides=False, least=0
    )
    save_seconds: float | None = option(
        "Seconds between checkpoints.", None, panel=SAVING, decides=False, least=0
    )
    keep_last: int | None = option(
        "Number of checkpoints to keep (default: all).", None, panel=SAVING, decides=False, least=1
    )
    skip_save_each_epoch: bool = option(
        "No checkpoint at the end of an epoch.", False, panel=SAVING, decides=False
    )
    verify: bool = option(
        "Verify the checksums of a model that llmforge wrote before training.",
        True,
        panel=SAVING,
        decides=False,
    )
    background_save: bool = option(
        "Write checkpoints while training continues.", True, panel=SAVING, decides=False
    )
    load_checkpoint: str | None = option(
        "Checkpoint to resume, or latest; a modeling folder loads only weights.",
        None,
        panel=SAVING,
        decides=False,
    )
    allow_changes: bool = option(
        "Resume with another dataset, tokenizer or seed than the checkpoint's.",
        False,
        panel=SAVING,
        decides=False,
    )
    overwrite: bool = option(
        "Delete what an earlier training left in --output.", False, panel=SAVING, decides=False
    )

    eval_data: list[Path] = option(
        "Prepared datasets to evaluate on, in bits per byte.", [], panel=WATCHING, decides=False
    )
    questions: QuestionOptions = group(QuestionOptions)
    eval_interval: int | None = option(
        "Steps between evaluations.", None, panel=WATCHING, decides=False, least=1
    )
    tensorboard_dir: Path | None = option(
        "Directory for TensorBoard logs (default: OUTPUT/tensorboard).", None, panel=WATCHING, decides=False
    )
    config_file: Path | None = option(
        "File for the resolved configuration (default: OUTPUT/config.yaml).",
        None,
        panel=WATCHING,
        decides=False,
    )
    wandb_project: str | None = option(
        "Also log to this Weights & Biases project.", None, panel=WATCHING, decides=False
    )

    pad_token: Literal["eos", "unk"] | None = option(
        "Accepted without effect: rows are packed, and their little padding is neither attended to "
        "nor trained on.",
        None,
        panel=COLOSSAL_LLAMA,
        decides=False,
    )
    padding_mode: Literal["max_length", "longest"] = option(
        "Accepted without effect: packed rows have the length of the dataset; longest is refused.",
        "max_length",
        panel=COLOSSAL_LLAMA,
        decides=False,
    )
    freeze_non_embeds_params: bool = option(
        "The same as --trainable embeddings.", False, panel=COLOSSAL_LLAMA
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UsageError("--data is missing.")
        self._check_choices()
        self._check_contradictions()
        self.seconds_allowed()
        if self.mix_later and self.mix is None:
            raise UsageError("--mix-later needs --mix, the proportions before.")
        if mix := self.weights():
            check_windows("--mix-later", mix, self.windows())

    def _check_choices(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"--schedule {self.schedule}: must be one of {', '.join(SCHEDULES)}.")
        optimizers.find(self.optimizer)
        if self.zero not in (None, 0, 1, 2):
            raise UsageError(f"--zero {self.zero}: must be 0, 1 or 2.")

    def _check_contradictions(self) -> None:
        if self.freeze_non_embeds_params:
            if self.trainable not in ("all", "embeddings"):
                raise UsageError(
                    f"--freeze-non-embeds-params contradicts --trainable {self.trainable}; give one of them."
                )
            object.__setattr__(self, "trainable", "embeddings")
        self.lora.check(self.trainable)
        if self.use_flash_attn and self.attention not in ("auto", "flash"):
            raise UsageError(f"--use-flash-attn contradicts --attention {self.attention}; give one of them.")
        if self.mixed_precision == "fp32" and (
            self.attention in ("flash", "flash3", "varlen") or self.use_flash_attn
        ):
            asked = "--use-flash-attn" if self.use_flash_attn else f"--attention {self.attention}"
            raise UsageError(f"{asked} contradicts --mixed-precision fp32: these kernels need bf16 or fp16.")
        if self.eval_interval is not None and not self.eval_data and not self.questions.eval_tasks:
            raise UsageError("--eval-interval needs --eval-data or --eval-tasks.")
        if self.on_spike == "rollback" and not self.save_interval and self.save_seconds is None:
            raise UsageError(
                "--on-spike rollback contradicts --save-interval 0: there is no checkpoint to roll back to."
            )
        if self.overwrite and self.load_checkpoint == "latest":
            raise UsageError(
                "--overwrite contradicts --load-checkpoint latest: one deletes what the other resumes."
            )
        if self.padding_mode == "longest":
            raise UsageError(
                "--padding-mode longest contradicts packed rows, which all have the --max-length of prepare-data; leave it out."
            )
        backend = registry.find(registry.resolved(self.plugin, 1))
        backend.check_options(self)
        backend.refuse_more([*self.rates.arguments(), *self.retention.given(), *self.lora.given()])
        optimizers.find(self.optimizer).check(self)
        self.rates.check(self.trainable, self.optimizer)
        factors = self.rates.factors()
        self.retention.check(self.trainable, self.learning_rate * max(1.0, factors.embeddings))

    def weights(self, step: int = 0) -> dict[str, float]:
        """`--mix` as category to weight, or `--mix-later` after `step` steps; empty where they are not given."""
        if self.mix is None:
            return {}
        first = parse_mix("--mix", [item.strip() for item in self.mix.split(",")])
        return [first, *(mix for begin, mix in self.windows().items() if begin <= step)][-1]

    def windows(self) -> dict[int, dict[str, float]]:
        """`--mix-later` by step."""
        return read_windows("--mix-later", self.mix_later) if self.mix_later else {}

    def seconds_allowed(self) -> float | None:
        """`--time-limit` in seconds."""
        if self.time_limit is None:
            return None
        try:
            parts = [float(part) for part in self.time_limit.split(":")]
        except ValueError:
            parts = []
        if not 1 <= len(parts) <= 3 or any(part < 0 for part in parts):
            raise UsageError(f"--time-limit {self.time_limit}: must be seconds, M:SS or H:MM:SS.")
        seconds = 0.0
        for part in parts:
            seconds = 60 * seconds + part
        return seconds

    def arguments(self) -> dict[str, Any]:
        """What decides the result, as arguments of a manifest."""
        values = super().arguments()
        if self.optimizer == "adamw":  # what version 0.1 made, which had no other, stays recognized
            del values["optimizer"]
        if self.mix_later is None:
            del values["mix_later"]
        values["head_chunk"] = self.head_chunk or CPU_HEAD_CHUNK  # which version 0.1 had everywhere
        return values

    def to_json(self) -> dict[str, Any]:
        """All values, paths as strings."""
        values = {one.name: value_of(self, one) for one in options_of(type(self))}
        return {
            name: str(value)
            if isinstance(value, Path)
            else [str(v) for v in value]
            if isinstance(value, list)
            else value
            for name, value in values.items()
        }


@dataclass(frozen=True)
class TrainCommandOptions(Result):
    """What the command takes besides."""

    config: Path | None = option(
        "YAML file of these options; the command line takes precedence.", None, decides=False
    )
    stopped_exit_code: int = option(
        "Exit code if a signal or --time-limit stopped the training before its last step.",
        0,
        decides=False,
        least=0,
        most=255,
    )
