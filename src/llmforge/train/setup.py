"""Everything a training needs before its first step: processes, data, engine, and the checks between them."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmforge.backends import registry
from llmforge.backends.base import Engine, World
from llmforge.backends.build import build_engine, choose_device
from llmforge.backends.common.heartbeats import Heartbeats
from llmforge.backends.common.processes import Processes, join_processes
from llmforge.backends.common.trainable import parse
from llmforge.console import say
from llmforge.dataset.packed import PackedDataset
from llmforge.tokenizer import Tokenizer
from llmforge.train import branch, plan, preflight
from llmforge.train.batches import Groups
from llmforge.train.holdout import Holdout
from llmforge.train.mixture import describe
from llmforge.train.options import TrainOptions
from llmforge.train.questions import Questions
from llmforge.train.ranks import facts, refuse_disagreement, refuse_separate_directories
from llmforge.train.resolved import write_config
from llmforge.train.resume import find_resumed
from llmforge.train.sampler import Sampler
from llmforge.train.save_dir import MODELING
from llmforge.train.shape import read_shape
from llmforge.train.source_text import SourceText
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.vocabulary import Vocabulary


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: the device of this one, and who the others are. `began` is `time.monotonic` of the start."""

    device: torch.device
    world: World
    processes: Processes
    began: float

    @staticmethod
    @contextmanager
    def joined(config: TrainOptions) -> "Iterator[Ranks]":
        """Collective: the processes watch each other's heartbeats inside."""
        began, device = time.monotonic(), choose_device(config.rehearse)
        backend = registry.find(registry.resolved(config.plugin, 1))
        world = join_processes(device, backend.process_group)
        processes = Processes(world)
        heartbeats = Heartbeats(processes, config.rank_timeout)
        heartbeats.start()
        try:
            yield Ranks(device, world, processes, began)
        finally:
            heartbeats.stop()


@dataclass(frozen=True)
class Setup:
    """What stays the same during a run.

    `model_files`: the files of the source model that every checkpoint gets, on the main rank. `identity`: what a
    checkpoint must have in common with the run that resumes it. `resumed`: the checkpoint that it continues from, or None.
    `peak_flops`: of all processes per second, where the device is known.
    """

    world: World
    data: PackedDataset
    holdout: Holdout | None
    questions: Questions | None
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    groups: Groups
    model_files: Mapping[str, bytes]
    identity: Mapping[str, Any]
    resumed: Path | None
    engine: Engine
    layers: int
    flops_per_token: float
    peak_flops: float | None


def set_up(config: TrainOptions, source: ModelDirectory, ranks: Ranks) -> Setup:
    """Collective: reads the data, finds the checkpoint to resume, and makes the engine with the weights of the model
    `source`, or of that checkpoint. `UserError` where any of it does not go together.
    """
    world, processes, data = ranks.world, ranks.processes, PackedDataset(config.data)
    words, loaded = source.vocabulary, source.tokenizer
    # The source model may go away while the run continues.
    model_files = source.side_files if world.is_main else {}
    identity = {"dataset": data.fingerprint, "tokenizer": loaded.fingerprint, "seed": config.seed}
    teacher = preflight.find_teacher(config, source, data.max_length)
    if config.retention.source_model is not None and teacher:
        identity["source"] = processes.from_main(lambda: teacher.fingerprint)
    kept = config.retention.protect_source
    text = SourceText(kept, loaded.fingerprint) if kept else None
    if text:
        identity["text to protect"] = text.data.fingerprint
    adapted = parse(config.trainable).lora
    if config.retention.needs_start or adapted:
        identity["start"] = processes.from_main(lambda: source.fingerprint)
    mine = facts(config, source.path, identity)
    refuse_disagreement(processes, mine)
    refuse_separate_directories(processes, config.output)
    preflight.check_inputs(config, data, loaded.fingerprint, words, source.path)
    preflight.check_rows(data, words, config.data[0])
    holdout = Holdout(config.eval_data, loaded.fingerprint, words.source) if config.eval_data else None
    questions = (
        Questions(config, loaded, data.max_length, data.documents_per_row)
        if config.questions.eval_tasks
        else None
    )
    resumed = find_resumed(config, processes, identity)
    # Adapters are part of the state, and belong to the weights that the run had started from.
    start = ModelDirectory(resumed / MODELING) if resumed and not adapted else source
    groups = Groups(tuple(data.categories), words.source)
    datasets = [data, *(one.data for one in (holdout, text) if one)]
    engine = build_engine(
        config,
        start,
        words,
        max(
            groups.count,
            holdout.groups.count if holdout else 0,
            questions.groups(world.size) if questions else 0,
        ),
        ranks.device,
        world,
        max(one.max_length for one in datasets),
        max(one.documents_per_row for one in datasets),
        source,
        teacher,
        text.batches() if text and not resumed else None,
    )
    preflight.check_embeddings(engine.embedding_norms(), words, start)
    shape = read_shape(start)
    visible = plan.visible_keys(data, config.cross_document_attention)
    flops_per_token = plan.step_flops(shape, config, visible)
    if world.is_main:
        plan.check_step_memory(config, shape, engine, data.max_length, ranks.device)
    return Setup(
        world=world,
        data=data,
        holdout=holdout,
        questions=questions,
        vocabulary=words,
        tokenizer=loaded,
        groups=groups,
        model_files=model_files,
        identity=identity,
        resumed=resumed,
        engine=engine,
        layers=shape.layers,
        flops_per_token=flops_per_token,
        peak_flops=preflight.peak_flops(engine.precision, world.size, ranks.device),
    )


def prepare_save_dir(config: TrainOptions, setup: Setup) -> None:
    """Makes --output ready: what is half-written is deleted, and what is not of this run is moved aside."""
    config.output.mkdir(parents=True, exist_ok=True)
    if setup.world.is_main:
        branch.remove_partial(config.output)
        branch.set_aside(config.output, setup.resumed)
        write_config(config)


def announce(config: TrainOptions, setup: Setup, sampler: Sampler, rows_per_step: int, steps: int) -> None:
    """Collective: says on the main rank what begins."""
    description = setup.engine.describe()
    if not setup.world.is_main:
        return
    size, source, data = setup.vocabulary.size, setup.vocabulary.source, setup.data
    if config.pad_token:
        say(
            f"--pad-token {config.pad_token} has no effect: rows are packed, and their padding is neither attended to "
            "nor trained on."
        )
    say(
        f"{description}; {len(data):,} rows of {data.max_length:,} tokens, {rows_per_step} per step, "
        f"{steps:,} steps; vocabulary {size:,}, of which {size - source:,} are new."
    )
    if peaks := config.rates.factors().peaks(config.learning_rate, setup.layers):
        say(f"peak learning rates: {', '.join(f'{name} {rate:.3g}' for name, rate in peaks.items())}.")
    if sampler.weights:
        for sentence in describe(sampler.weights, data, len(sampler)):
            say(sentence)
    for step, mix in config.windows().items():
        say(
            f"after step {step:,} the mix is {', '.join(f'{name} {weight:g}' for name, weight in mix.items())}."
        )
