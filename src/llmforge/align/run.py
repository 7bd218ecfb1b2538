"""`llmforge train-preferences` as a step: checks, training by TRL, and the model directory that it leaves."""

import errno
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmforge import hub
from llmforge.align.methods.base import Context, Method, Reward
from llmforge.align.options import PreferenceOptions
from llmforge.console import progress, say
from llmforge.errors import InterruptionError, UserError
from llmforge.steps import Finished, Outcome, Step, fingerprint_json, remove_tree, run_step
from llmforge.tokenizer.chat_template import ChatTemplate
from llmforge.weights.absent import not_a_model
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.export import model_directory

STEP = "train-preferences"
MODELING = "modeling"
# Of what torch raises where a checkpoint cannot be written.
TORCH_WRITES = ("PytorchStreamWriter", "inline_container")


def train_preferences(
    options: PreferenceOptions, data: Sequence[Path], heldout: Sequence[Path] = ()
) -> Finished:
    """Trains `options.model` on the records of `data`, and measures it on `heldout`, as the step directory `options.output`.

    Raises `UserError` for everything that does not go together, and `InterruptionError` where a signal stopped the run.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("train-preferences runs in one process; start it without torchrun.")
    origin = ModelDirectory(hub.local(options.model))
    if not (origin.path / "config.json").is_file():
        raise not_a_model(origin.path, "--model")
    template = ChatTemplate(origin.tokenizer, options.chat_template)
    template.require_tokens()
    sampling = options.sampling
    reward_model = model_directory(hub.local(sampling.reward_model)) if sampling.reward_model else None
    arguments = options.arguments()
    if options.chat_template:
        arguments["chat_template"] = fingerprint_json(template.text)
    step = Step(
        STEP,
        options.output,
        arguments,
        [origin.path, *data, *heldout, *filter(None, (reward_model, sampling.rules))],
        overwrite=options.overwrite,
        resumable=options.chosen.resumable,
    )

    def build(partial: Path) -> Outcome:
        return _build(partial, options, origin, template, reward_model, data, heldout)

    return run_step(step, build)


def _build(
    partial: Path,
    options: PreferenceOptions,
    origin: ModelDirectory,
    template: ChatTemplate,
    reward_model: Path | None,
    data: Sequence[Path],
    heldout: Sequence[Path],
) -> Outcome:
    method = options.chosen
    require_trl(method)
    from llmforge.align.rewards import find_rewards
    from llmforge.align.rows import read_rows

    sampling = options.sampling
    rows = read_rows(data, method.rows, template, options.max_length, options.max_rejected)
    held = (
        read_rows(heldout, method.rows, template, options.max_length, options.max_rejected)
        if heldout
        else None
    )
    import datasets
    import transformers

    datasets.disable_progress_bars()
    from llmforge.align.models import check_space, idle_ids, load_policy, make_tokenizer, write_model
    from llmforge.align.watch import Watch

    longest = rows.longest + (sampling.max_new_tokens if method.rows == "prompts" else 0)
    rewards: list[Reward] = []
    if method.rows == "prompts":
        rewards = find_rewards(reward_model, sampling.rules, origin.tokenizer, longest)
    transformers.set_seed(options.seed)  # a new head is random
    model = load_policy(origin, longest, method.scores)
    check_space(options.output, model, bool(options.save_interval and method.resumable))
    tokenizer = make_tokenizer(origin.tokenizer, template)
    work = partial / "work"
    work.mkdir(exist_ok=True)
    steps = _steps(options, len(rows))
    with progress(f"train-preferences {options.method}", steps, "steps") as advance:
        watch = Watch(partial, sampling.max_kl, method.resumable, advance)
        context = Context(
            options=options,
            model=model,
            origin=origin.path,
            tokenizer=tokenizer,
            rows=rows,
            heldout=held,
            arguments=_arguments(options, work, steps),
            callbacks=[watch],
            idle_ids=idle_ids(origin),
            rewards=rewards,
            work=work,
        )
        say(f"{len(rows):,} {method.rows}, {steps:,} steps; --method {options.method} by TRL.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what TRL does
            trainer = method.trainer(context)
            trainer.create_model_card = lambda *_, **__: None  # of a checkpoint that nobody reads
            trainer.remove_callback(transformers.PrinterCallback)
            try:
                with watch.signals():
                    _train(trainer, method, work)
            finally:
                watch.close()
        if watch.stopped and trainer.state.global_step < trainer.state.max_steps:
            raise InterruptionError(
                f"{watch.stopped} stopped the training after step {trainer.state.global_step:,} of "
                f"{trainer.state.max_steps:,}; run the same command again, which continues from there."
            )
    figures = method.measure(trainer, context) if held else {}
    metrics: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "data": rows.account,
        **watch.summary(),
        **({"heldout": {**figures, "data": held.account}} if held else {}),
    }
    given = template.text if options.chat_template else None
    with _full_disk(partial):
        write_model(method.trained(trainer), partial / MODELING, origin, given, tokenizer.pad_token_id)
    remove_tree(work)
    return Outcome(
        outputs={
            "tokenizer": origin.tokenizer.fingerprint,
            "model": MODELING,
            **({} if method.scores else {"vocabulary": origin.vocabulary.to_json()}),
        },
        metrics=metrics,
    )


def require_trl(method: Method) -> None:
    """Raises `UserError` unless a TRL is installed that has `method`."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"train-preferences needs TRL, which cannot be imported ({error}); run: pip install 'llmforge[align]'."
        ) from None
    with warnings.catch_warnings():  # that an experiment may end, which the help says
        warnings.simplefilter("ignore")
        method.check()


def _steps(options: PreferenceOptions, rows: int) -> int:
    """The number of optimizer steps."""
    per_epoch = -(-rows // options.micro_batch_size)
    if options.chosen.rows == "prompts":  # of which a last batch that is not full is not sampled
        per_epoch = rows // (options.micro_batch_size * options.gradient_accumulation_steps)
        if not per_epoch:
            raise UserError(
                f"--data has {rows:,} prompts, fewer than a step reads (--micro-batch-size x --gradient-accumulation-steps); lower them."
            )
    else:
        per_epoch = -(-per_epoch // options.gradient_accumulation_steps)
    return options.max_steps or per_epoch * options.num_epochs


def _arguments(options: PreferenceOptions, work: Path, steps: int) -> dict[str, Any]:
    """The TrainingArguments that all methods share."""
    import torch

    gpu = torch.cuda.is_available()
    if torch.cuda.device_count() > 1:
        raise UserError(
            "train-preferences uses one GPU; make one visible, such as by CUDA_VISIBLE_DEVICES=0."
        )
    saves = bool(options.save_interval and options.chosen.resumable)
    return {
        "output_dir": str(work / "checkpoints"),
        "per_device_train_batch_size": options.micro_batch_size,
        "per_device_eval_batch_size": options.micro_batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "gradient_checkpointing": options.gradient_checkpointing,
        "max_steps": steps,
        "learning_rate": options.resolved_rate,
        "lr_scheduler_type": options.schedule,
        "warmup_steps": options.warmup_steps,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.gradient_clipping,
        "seed": options.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if saves else "no",
        "save_steps": options.save_interval or 1,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "dataloader_pin_memory": gpu,
    }


def _train(trainer: Any, method: Method, work: Path) -> None:
    """Trains, from the last checkpoint that is complete if there is one."""
    found = newest_checkpoint(work / "checkpoints") if method.resumable else None
    if found:
        say(f"continuing after step {found.name.rpartition('-')[2]}.")
    with _full_disk(work):
        trainer.train(**({"resume_from_checkpoint": str(found)} if found else {}))


@contextmanager
def _full_disk(directory: Path) -> Iterator[None]:
    """Makes an `OSError` of what safetensors and torch raise inside where a file in `directory` cannot be written."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        text = str(error)
        code = re.search(r"os error (\d+)", text)
        number = int(code[1]) if code else errno.ENOSPC
        if code or any(words in text for words in TORCH_WRITES):
            raise OSError(number, os.strerror(number), str(directory)) from error
        raise


def newest_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint that transformers finished: it writes `trainer_state.json` as the last of its files."""
    complete = []
    for path in directory.glob("checkpoint-*"):
        try:
            step = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, LookupError):
            continue
        complete.append((step, path))
    return max(complete)[1] if complete else None
