# ruff: noqa: RUF009 - `flag` makes dataclass fields
"""The configuration of a training: one table of flags, read by the command line and by YAML files alike.

A field's name is its long flag; its metadata holds the help, other spellings, and whether it decides the
bytes of the result (`decides`) or only how and where the run goes on. This file imports no torch: a finished
run says so at once.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llmforge.backends import registry
from llmforge.backends.common import optimizers
from llmforge.errors import UsageError
from llmforge.train.schedule import SCHEDULES

RUN, BATCHES, OPTIMIZER, MODEL, ENGINE, GUARDS, SAVING, WATCHING = (
    "The run",
    "Batches",
    "Optimizer and schedule",
    "What is trained",
    "Engine",
    "Guards",
    "Saving and resuming",
    "Watching",
)


def flag(panel: str, default: Any, text: str, *names: str, decides: bool = True) -> Any:
    """A field of `TrainConfig`; `names` are further spellings of the flag, such as `--grad-clip` or `-w`."""
    metadata = {"panel": panel, "help": text, "names": names, "decides": decides}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that `llmforge train` can be told; the checks of `__post_init__` name the flags that
    contradict.
    """

    pretrained: Path = flag(RUN, None, "Model directory to start from.", decides=False)
    dataset: list[Path] = flag(
        RUN, [], "Datasets of prepare-data, or parts of them (OUT/arrow/part-00000).", decides=False
    )
    save_dir: Path = flag(RUN, None, "Directory of checkpoints, metrics and the final model.", decides=False)
    seed: int = flag(RUN, 42, "Seed of everything that is left to chance.")
    num_epochs: int = flag(RUN, 1, "Times the dataset is gone through.")
    max_steps: int | None = flag(
        RUN, None, "Stop after this many optimizer steps; the schedule ends there too."
    )
    time_limit: str | None = flag(
        RUN, None, "Save and exit after this long: seconds, or H:MM:SS.", decides=False
    )
    dry_run: bool = flag(RUN, False, "Show what the run would do and need, and stop.", decides=False)

    micro_batch_size: int = flag(BATCHES, 2, "Rows per forward pass and process.", "--batch-size")
    accumulation_steps: int = flag(BATCHES, 1, "Forward passes per optimizer step.")
    max_length: int | None = flag(
        BATCHES, None, "Tokens per row; taken from the dataset, and checked if given."
    )
    pad_token: Literal["eos", "unk"] | None = flag(
        BATCHES,
        None,
        "The ancestor's token of padding. Rows are packed: what little padding they have is neither seen nor "
        "learned, so any token serves, and the run says so.",
        decides=False,
    )
    padding_mode: Literal["max_length", "longest"] = flag(
        BATCHES,
        "max_length",
        "The ancestor's length of rows. Packed rows always have that of the dataset; longest is refused.",
        decides=False,
    )
    mix: str | None = flag(
        BATCHES,
        None,
        "Shares of rows by category, such as zh=0.7,en=0.3, 0 to leave one out (default: all rows, as they come).",
    )
    cross_document_attention: bool = flag(
        BATCHES, False, "Let documents in a row see each other, as the ancestor did."
    )

    optimizer: str = flag(
        OPTIMIZER,
        "adamw",
        f"{' or '.join(optimizers.names())}. muon is for the matrices of layers (AdamW for all else), with --plugin native "
        "or ddp; models that were pretrained with AdamW, as most are, lose by the change of optimizer (arXiv 2605.10468).",
    )
    lr: float = flag(OPTIMIZER, 3e-4, "Highest learning rate.")
    schedule: str = flag(
        OPTIMIZER,
        "cosine",
        f"Learning rate after warm-up: {', '.join(SCHEDULES)}. wsd is warmup-stable-decay.",
    )
    warmup_steps: int | None = flag(OPTIMIZER, None, "Steps of warm-up (default: 2.5 % of all).", "-s")
    min_lr_ratio: float = flag(OPTIMIZER, 0.1, "Lowest learning rate, as a share of the highest.")
    weight_decay: float = flag(OPTIMIZER, 0.1, "Weight decay; norms and biases never decay.", "-w")
    embedding_decay: bool = flag(OPTIMIZER, True, "Let embeddings decay too.")
    beta1: float = flag(OPTIMIZER, 0.9, "AdamW: memory of the gradient.")
    beta2: float = flag(OPTIMIZER, 0.95, "AdamW: memory of its square.")
    gradient_clipping: float = flag(OPTIMIZER, 1.0, "Largest gradient norm; 0 for none.", "--grad-clip")

    trainable: str = flag(
        MODEL, "all", "all, lora, or a list of: embeddings or new-embeddings, and layers such as 0-3 or 28-."
    )
    freeze_non_embeds_params: bool = flag(MODEL, False, "The ancestor's way to say --trainable embeddings.")
    lora_rank: int | None = flag(MODEL, None, "Rank of the adapters of --trainable lora.")
    use_neft: bool = flag(MODEL, False, "Add noise to the embeddings while training (NEFTune).")
    neft_alpha: float = flag(MODEL, 5.0, "Size of that noise.")

    plugin: str = flag(
        ENGINE,
        "auto",
        f"Backend: auto, {', '.join(registry.OWN)}, or one of another package (llmforge doctor lists them). auto picks "
        "native for one process, and ddp or fsdp for several.",
        decides=False,
    )
    tp: int = flag(ENGINE, 1, "3d: ranks that share every layer (tensor parallel).", decides=False)
    pp: int = flag(ENGINE, 1, "3d: stages of layers, one after the other (pipeline).", decides=False)
    sp: int = flag(ENGINE, 1, "3d: ranks that share every row (sequence parallel).", decides=False)
    sp_mode: Literal["split_gather", "all_to_all", "ring", "ring_attn"] | None = flag(
        ENGINE,
        None,
        "3d: split_gather cuts rows among the ranks of --tp, all_to_all among those of --sp "
        "(default: all_to_all where --sp is given).",
        decides=False,
    )
    zero: int | None = flag(
        ENGINE,
        None,
        "3d: ZeRO stage over data ranks, 0, 1 or 2 (default: 0).",
        "--zero-stage",
        decides=False,
    )
    microbatch_size: int | None = flag(
        ENGINE,
        None,
        "3d with --pp: rows that pass through a stage at once (default: 1). A step's rows of a process are "
        "--micro-batch-size x --accumulation-steps.",
        decides=False,
    )
    rank_timeout: float = flag(
        ENGINE,
        300.0,
        "Seconds after which a process that gives no sign of life is named, and the run ends; 0 for never.",
        decides=False,
    )
    rehearse: bool = flag(
        ENGINE,
        False,
        "Run a ColossalAI plugin on the CPU with gloo: same code, same flags, no GPU.",
        decides=False,
    )
    mixed_precision: Literal["auto", "bf16", "fp16", "fp32"] = flag(
        ENGINE, "auto", "auto is bf16 where the machine computes in it, else fp32."
    )
    attention: Literal["auto", "sdpa", "flash", "varlen", "flex"] = flag(
        ENGINE, "auto", "Attention kernel; auto is the fastest that runs here."
    )
    use_flash_attn: bool = flag(ENGINE, False, "Use flash-attn if it is installed; says so if it is not.")
    use_grad_checkpoint: bool = flag(ENGINE, False, "Recompute activations instead of keeping them.")
    compile: bool = flag(ENGINE, False, "Compile the layers with torch.compile.")
    head_chunk: int = flag(ENGINE, 512, "Tokens whose logits exist at the same time.")

    on_spike: Literal["warn", "skip", "rollback"] = flag(
        GUARDS,
        "warn",
        "When loss or gradient norm jumps: say so, skip the step, or go back and pass over the data.",
    )
    spike_threshold: float = flag(
        GUARDS, 6.0, "A jump is this many standard deviations above the running mean."
    )
    max_bad_steps: int = flag(GUARDS, 10, "Stop after this many skipped steps in a row.")

    save_interval: int = flag(SAVING, 1000, "Steps between checkpoints; 0 for none.", decides=False)
    save_seconds: float | None = flag(SAVING, None, "Seconds between checkpoints.", decides=False)
    keep_last: int | None = flag(
        SAVING, None, "Keep only this many checkpoints (default: all).", decides=False
    )
    skip_save_each_epoch: bool = flag(SAVING, False, "No checkpoint at the end of an epoch.", decides=False)
    verify: bool = flag(
        SAVING,
        True,
        "Compare every byte of a model that llmforge wrote with its checksums before it is read.",
        decides=False,
    )
    background_save: bool = flag(SAVING, True, "Write checkpoints while training goes on.", decides=False)
    load_checkpoint: str | None = flag(
        SAVING,
        None,
        "Checkpoint to resume, or latest; a modeling folder gives its weights alone.",
        decides=False,
    )
    allow_changes: bool = flag(
        SAVING, False, "Resume even if dataset, tokenizer or seed are not the checkpoint's.", decides=False
    )
    overwrite: bool = flag(
        SAVING, False, "Delete what an earlier training left in --save-dir.", decides=False
    )

    holdout: list[Path] = flag(WATCHING, [], "Prepared datasets to measure in bits per byte.", decides=False)
    eval_interval: int | None = flag(WATCHING, None, "Steps between these measurements.", decides=False)
    tensorboard_dir: Path | None = flag(
        WATCHING, None, "TensorBoard logs (default: SAVE_DIR/tensorboard).", decides=False
    )
    config_file: Path | None = flag(
        WATCHING,
        None,
        "Where the resolved configuration is written (default: SAVE_DIR/config.yaml).",
        decides=False,
    )
    wandb_project: str | None = flag(
        WATCHING, None, "Also report to this Weights & Biases project.", decides=False
    )

    def __post_init__(self) -> None:
        for name in ("pretrained", "dataset", "save_dir"):
            if not getattr(self, name):
                raise UsageError(f"--{dashed(name)} is missing.")
        self._check_numbers()
        self._check_choices()
        self._check_contradictions()

    def _check_numbers(self) -> None:
        at_least_one = ("num_epochs", "micro_batch_size", "accumulation_steps", "head_chunk", "max_bad_steps")
        for name in (
            *at_least_one,
            "max_steps",
            "keep_last",
            "max_length",
            "lora_rank",
            "eval_interval",
            "tp",
            "pp",
            "sp",
            "microbatch_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{dashed(name)} {value}: must be at least 1.")
        not_negative = (
            "lr",
            "weight_decay",
            "gradient_clipping",
            "save_interval",
            "warmup_steps",
            "neft_alpha",
        )
        for name in (*not_negative, "save_seconds", "spike_threshold", "rank_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"--{dashed(name)} {value}: must be a number from 0 up.")
        for name in ("min_lr_ratio", "beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{dashed(name)} {getattr(self, name)}: must lie between 0 and 1.")
        self.seconds_allowed()
        self.weights()

    def _check_choices(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"--schedule {self.schedule}: must be one of {', '.join(SCHEDULES)}.")
        optimizers.find(self.optimizer)
        if self.zero not in (None, 0, 1, 2):
            raise UsageError(f"--zero {self.zero}: must be 0, 1 or 2.")

    def _check_contradictions(self) -> None:
        if self.freeze_non_embeds_params:
            if self.trainable not in ("all", "embeddings"):
                raise UsageError(f"--freeze-non-embeds-params contradicts --trainable {self.trainable}.")
            object.__setattr__(self, "trainable", "embeddings")
        if self.trainable == "lora" and self.lora_rank is None:
            raise UsageError("--trainable lora needs --lora-rank.")
        if self.lora_rank is not None and self.trainable != "lora":
            raise UsageError(
                f"--lora-rank {self.lora_rank} contradicts --trainable {self.trainable}; it goes with lora."
            )
        if self.use_flash_attn and self.attention not in ("auto", "flash"):
            raise UsageError(f"--use-flash-attn contradicts --attention {self.attention}.")
        if self.mixed_precision == "fp32" and (self.attention in ("flash", "varlen") or self.use_flash_attn):
            asked = "--use-flash-attn" if self.use_flash_attn else f"--attention {self.attention}"
            raise UsageError(
                f"{asked} contradicts --mixed-precision fp32: these kernels compute in bf16 and fp16."
            )
        if self.eval_interval is not None and not self.holdout:
            raise UsageError("--eval-interval needs --holdout, the data to measure on.")
        if self.on_spike == "rollback" and not self.save_interval and self.save_seconds is None:
            raise UsageError(
                "--on-spike rollback contradicts --save-interval 0: there is nothing to go back to."
            )
        if self.overwrite and self.load_checkpoint == "latest":
            raise UsageError(
                "--overwrite contradicts --load-checkpoint latest: one deletes what the other resumes."
            )
        if self.padding_mode == "longest":
            raise UsageError(
                "--padding-mode longest contradicts packed rows, which all have the --max-length of prepare-data; leave it out."
            )
        registry.find(registry.resolved(self.plugin, 1)).check_options(self)
        optimizers.find(self.optimizer).check(self)

    def weights(self) -> dict[str, float]:
        """`--mix` as category to weight; empty where it is not given."""
        if self.mix is None:
            return {}
        from llmforge.dataset.options import parse_mix  # only now: its imports take time

        return parse_mix([item.strip() for item in self.mix.split(",")])

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

    def deciding(self) -> dict[str, Any]:
        """The values that decide the bytes of the result, as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["decides"]}
        if self.optimizer == "adamw":  # what version 0.1 made, which had no other, stays recognised
            del values["optimizer"]
        return values

    def to_json(self) -> dict[str, Any]:
        """All values, paths as strings."""
        return {
            name: str(value)
            if isinstance(value, Path)
            else [str(v) for v in value]
            if isinstance(value, list)
            else value
            for name, value in asdict(self).items()
        }


@cache
def hints() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


def dashed(name: str) -> str:
    return name.replace("_", "-")


def optional(kind: Any) -> tuple[Any, bool]:
    """(T, True) for `T | None`, (T, False) for any other T."""
    if get_origin(kind) is Literal or type(None) not in get_args(kind):
        return kind, False
    return Union[tuple(a for a in get_args(kind) if a is not type(None))], True  # noqa: UP007


def make_config(given: Mapping[str, Any], file: Path | None = None) -> TrainConfig:
    """The configuration of the values given on the command line (None: not given), over those of a YAML
    file.
    """
    values = read_config(file) if file else {}
    values.update({name: value for name, value in given.items() if value not in (None, [], ())})
    return TrainConfig(**values)


def read_config(file: Path) -> dict[str, Any]:
    """The values of a YAML file of flags, dashes or underscores, under the names of the fields of
    `TrainConfig`.
    """
    from llmforge.yaml_file import read_yaml

    raw = read_yaml(file, "--config")
    spellings = {
        n.lstrip("-"): f.name for f in fields(TrainConfig) for n in (dashed(f.name), *f.metadata["names"])
    }
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = spellings.get(dashed(str(key)))
        if name is None:
            raise UsageError(f"--config {file}: {key} is not a flag of llmforge train.")
        if name in values:
            raise UsageError(f"--config {file} sets --{dashed(name)} twice, once as {key}.")
        if value is not None:
            values[name] = convert(name, value, file)
    return values


def convert(name: str, value: Any, file: Path) -> Any:
    """`value` of a YAML file as the type of field `name`."""
    kind, _ = optional(hints()[name])
    if get_origin(kind) is Literal and str(value) in get_args(kind):
        return str(value)
    if get_origin(kind) is list and isinstance(value, (list, str)):
        return [Path(str(item)) for item in ([value] if isinstance(value, str) else value)]
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, (str, int)):
        return str(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 3e-4, without a point, as text
        except ValueError:
            pass
    expected = (
        " or ".join(get_args(kind)) if get_origin(kind) is Literal else getattr(kind, "__name__", str(kind))
    )
    raise UsageError(f"--config {file}: {name} is {value!r}, but must be {expected}.")


def default_of(entry: Any) -> Any:
    """The default of a dataclass field; None for a list."""
    return None if entry.default is MISSING else entry.default
