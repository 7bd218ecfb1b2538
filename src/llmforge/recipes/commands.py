"""Every command: where its options are declared, and in which part of the pipeline it stands. Imports none of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.options import Option, load_class, make, options_of, read_file

TOKENIZER, MODEL, DATA, TRAINING, RESULT, ALL = (
    "1. Tokenizer",
    "2. Model",
    "3. Data",
    "4. Training",
    "5. Results",
    "The whole pipeline",
)
_RESULT, _DEBUG = "llmforge.options:Result", "llmforge.options:Debug"


@dataclass(frozen=True)
class Command:
    """`line` is its help; `options` and `besides` are the places of two option classes: what is configured, and what
    the command line adds.
    """

    panel: str
    line: str
    options: str
    besides: str = _RESULT

    def classes(self) -> tuple[type, type]:
        """The two classes, their files imported."""
        return load_class(self.options), load_class(self.besides)

    def all_options(self) -> tuple[Option, ...]:
        """Every option, in the order of help."""
        options, besides = self.classes()
        return (*options_of(options), *options_of(besides))


# In pipeline order. A name of two words is a command of a group.
COMMANDS: dict[str, Command] = {
    "learn-pieces": Command(
        TOKENIZER,
        "Learn new tokens from a corpus by continuing the tokenizer's BPE.",
        "llmforge.tokenizer.options:LearnPiecesOptions",
    ),
    "init-tokenizer": Command(
        TOKENIZER,
        "Add tokens to a tokenizer and check the result.",
        "llmforge.tokenizer.options:InitTokenizerOptions",
    ),
    "compare-tokenizers": Command(
        TOKENIZER,
        "Compare tokenizers on the same texts.",
        "llmforge.tokenizer.options:CompareTokenizersOptions",
    ),
    "prune-vocabulary": Command(
        MODEL,
        "Remove tokens that texts do not use, and their rows of a model.",
        "llmforge.embedding.prune_options:PruneOptions",
    ),
    "init-model": Command(
        MODEL,
        "Resize a model's embeddings for an extended tokenizer.",
        "llmforge.embedding.options:InitModelOptions",
    ),
    "score-data": Command(
        DATA,
        "Write how many bits per byte a model needs for each document.",
        "llmforge.evaluate.options:ScoreDataOptions",
    ),
    "prepare-data": Command(
        DATA,
        "Tokenize a corpus and pack it into rows.",
        "llmforge.dataset.options:PrepareOptions",
    ),
    "inspect-data": Command(
        DATA, "Show the contents of a dataset.", "llmforge.dataset.options:InspectOptions"
    ),
    "train": Command(
        TRAINING,
        "Continue pretraining: one stage.",
        "llmforge.train.options:TrainOptions",
        "llmforge.train.options:TrainCommandOptions",
    ),
    "train-preferences": Command(
        TRAINING,
        "Train on pairs of answers, or on rewards (DPO, reward models, GRPO, PPO).",
        "llmforge.align.options:PreferenceOptions",
    ),
    "plan": Command(
        TRAINING,
        "Estimate memory, steps and hours of a training.",
        "llmforge.train.plan_options:PlanOptions",
    ),
    "launch": Command(
        TRAINING,
        "Check all hosts of a hostfile and start a training on them.",
        "llmforge.launch.options:LaunchOptions",
        _DEBUG,
    ),
    "doctor": Command(
        TRAINING,
        "Show which backends this machine can run, and what is missing.",
        "llmforge.doctor.options:DoctorOptions",
    ),
    "export": Command(
        RESULT,
        "Write a checkpoint as a Hugging Face model.",
        "llmforge.weights.options:ExportOptions",
    ),
    "merge": Command(
        RESULT,
        "Merge models or checkpoints into one model.",
        "llmforge.weights.options:MergeOptions",
    ),
    "evaluate": Command(
        RESULT,
        "Compare models on the same documents and questions.",
        "llmforge.evaluate.options:EvaluateOptions",
    ),
    "generate": Command(
        RESULT, "Continue a prompt, or a file of prompts.", "llmforge.evaluate.options:GenerateOptions"
    ),
    "chat": Command(
        RESULT, "Talk to a model, by its chat template.", "llmforge.evaluate.options:ChatOptions", _DEBUG
    ),
    "delta make": Command(
        RESULT,
        "Write a tuned model as its difference from its base model.",
        "llmforge.weights.options:DeltaMakeOptions",
    ),
    "delta apply": Command(
        RESULT,
        "Restore a tuned model from its base and a delta, bit for bit.",
        "llmforge.weights.options:DeltaApplyOptions",
    ),
    "report": Command(
        RESULT,
        "Write a report of trainings, comparisons and samples.",
        "llmforge.overview.options:ReportOptions",
    ),
    "verify": Command(
        RESULT,
        "Verify the checksums of outputs.",
        "llmforge.steps.options:VerifyOptions",
    ),
    "run": Command(
        ALL,
        "Run the steps of a recipe; finished steps are skipped.",
        "llmforge.recipes.options:RunOptions",
        _DEBUG,
    ),
}
GROUPS: dict[str, str] = {"delta": "Store a tuned model as its difference from its base, and restore it."}


def build(name: str, values: Mapping[str, Any], spellings: Mapping[str, str]) -> tuple[Any, Any]:
    """The two option objects of command `name` from converted values by field; those of its --config file, whose keys
    may be `spellings`, count where `values` have none.
    """
    options, besides = COMMANDS[name].classes()
    file = values.get("config")
    if isinstance(file, Path):
        values = {**read_file(options, name, file, spellings), **values}
    return make(options, values), make(besides, values)
