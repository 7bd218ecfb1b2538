"""Other spellings of options, accepted everywhere and shown in docs/reference.md alone: those of Colossal-LLaMA's scripts,
and those of earlier versions of llmforge. An option that takes none of these has none.
"""

from collections.abc import Mapping

from llmforge.errors import UsageError

# command: {spelling: option}. Underscores are dashes already; a single letter is a short flag.
SPELLINGS: dict[str, dict[str, str]] = {
    "learn-pieces": {
        "source-tokenizer-dir": "tokenizer",
        "corpus": "data",
        "max-length": "max-piece-length",
    },
    "init-tokenizer": {
        "source-tokenizer-dir": "tokenizer",
        "target-tokenizer-dir": "output",
        "expand-tokens-file": "pieces",
        "verify-corpus": "verify-data",
    },
    "compare-tokenizers": {
        "directories": "tokenizer",
        "tokenizers": "tokenizer",
        "corpus": "data",
        "max-samples": "max-documents",
    },
    "init-model": {
        "source-model-and-tokenizer-path": "model",
        "target-tokenizer-path": "tokenizer",
        "target-model-path": "output",
        "corpus": "data",
        "verify-corpus": "verify-data",
        "mend-rows": "replace-nan-rows",
    },
    "prepare-data": {
        "data-input-dirs": "data",
        "tokenizer-dir": "tokenizer",
        "data-output-dirs": "output",
        "data-output-dir": "output",
        "num-spliced-dataset-bins": "bins",
        "splice": "packing",
        "data-cache-dir": "cache-dir",
        "data-arrow-output-dir": "arrow-output-dir",
        "data-jsonl-output-dir": "jsonl-output-dir",
    },
    "inspect-data": {"dataset": "data", "tokenizer-dir": "tokenizer", "html": "output"},
    "train": {
        "pretrained": "model",
        "dataset": "data",
        "save-dir": "output",
        "batch-size": "micro-batch-size",
        "accumulation-steps": "gradient-accumulation-steps",
        "lr": "learning-rate",
        "s": "warmup-steps",
        "w": "weight-decay",
        "grad-clip": "gradient-clipping",
        "zero-stage": "zero",
        "microbatch-size": "pipeline-micro-batch-size",
        "use-grad-checkpoint": "gradient-checkpointing",
        "holdout": "eval-data",
    },
    "plan": {
        "pretrained": "model",
        "dataset": "data",
        "batch-size": "micro-batch-size",
        "accumulation-steps": "gradient-accumulation-steps",
        "use-grad-checkpoint": "gradient-checkpointing",
    },
    "export": {"output-dir": "output"},
    "delta make": {"target": "model"},
}

# command: {flag of Colossal-LLaMA: what to do instead}. These have no counterpart to be accepted as.
REFUSED: dict[str, dict[str, str]] = {
    "train": {
        "enable-sequence-parallelism": "--sp, or --sp-mode split_gather with --tp, is all that sequence parallelism needs",
        "zero-cpu-offload": "--plugin zero2_cpu keeps the optimizer's states on the CPU",
        "benchmark": "llmforge plan estimates memory and hours, and train --max-steps 20 measures them",
        "num-samples": "it belongs to --benchmark; --max-steps limits a run",
    }
}


def refuse(command: str, name: str) -> None:
    """A `UsageError` for a flag that Colossal-LLaMA has and llmforge has not, saying what stands in its place."""
    if instead := REFUSED.get(command, {}).get(name.removeprefix("--")):
        raise UsageError(f"{name} is Colossal-LLaMA's: {instead}; leave it out.")


def spellings_of(command: str) -> Mapping[str, str]:
    """`{spelling: option}` of a command."""
    return SPELLINGS.get(command, {})
