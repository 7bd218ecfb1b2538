# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of evaluate and generate."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmforge.corpus.options import ReadOptions
from llmforge.errors import UsageError
from llmforge.options import OVERWRITE, SEED, TEXTS_HELP, TRUST_REMOTE_CODE, Options, group, option
from llmforge.weights.options import size_in_bytes

Dtype = Literal["float32", "bfloat16", "float16"]
COLDEST, HOTTEST = 1e-4, 1e4  # beyond them the likeliest token, or any, is taken, and further on float32 ends
DTYPE = "Data type of the weights."
TASKS, CODE, MEMORY = "Tasks", "Code", "Memory"
SCORINGS = ("letter", "answer", "bytes", "exact")


@dataclass(frozen=True)
class MemoryOptions(Options):
    """How a model takes less memory than its weights."""

    quantize: Literal["int8", "int4"] | None = option(
        "Round the linear layers to 8 or 4 bits while they are read (bitsandbytes: LLM.int8() or NF4 in blocks of 32); embedding "
        "and head, norms and biases keep --dtype.",
        None,
        panel=MEMORY,
    )
    memory_limit: str | None = option(
        "Take at most this much memory, such as 2GB, of the GPU where there is one: layers that do not fit are read from the "
        "weight files whenever they are computed, so results are the same and take longer.",
        None,
        panel=MEMORY,
        metavar="SIZE",
        decides=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and self.quantize is not None:
            raise UsageError(
                "--memory-limit contradicts --quantize: bitsandbytes computes what is in memory; give one of them."
            )

    def arguments(self) -> dict[str, Any]:
        """What decides results; nothing without --quantize, as in versions that had no such option."""
        return {"quantize": self.quantize} if self.quantize else {}

    @property
    def limit(self) -> int | None:
        """`memory_limit` in bytes."""
        return None if self.memory_limit is None else size_in_bytes("--memory-limit", self.memory_limit)


@dataclass(frozen=True)
class ProtocolOptions(Options):
    """How models are measured: what decides the figures. `dtype` is that of the weights."""

    max_length: int = option(
        "Maximum number of tokens per input; longer documents are evaluated in windows.", 2048, least=2
    )
    max_documents: int | None = option("Maximum number of documents per label (default: all).", None, least=1)
    max_characters: int | None = option(
        "Maximum number of characters per document (default: all).", None, least=1
    )
    batch_tokens: int = option("Number of tokens per batch.", 2048, least=2)
    dtype: Dtype = option(DTYPE, "float32")
    per_document: bool = option(
        "Also give the bits and bytes of each document, in --json and --output x.json.", False
    )
    by_category: bool = option(
        "Figures by the categories of the documents, of sources without a label.", False
    )
    memory: MemoryOptions = group(MemoryOptions)
    reading: ReadOptions = group(ReadOptions, argument="reading")

    def arguments(self) -> dict[str, Any]:
        """What decides the figures, as arguments of a manifest."""
        values = super().arguments()
        if not self.per_document:  # tables of versions that had no such option stay recognized
            del values["per_document"]
        return values


@dataclass(frozen=True)
class TaskOptions(Options):
    """How tasks are measured. `scoring` without a word: what the layout of the task is measured by."""

    shots: int | None = option(
        "Questions with their answers, from the dev split, before each question (default: 0; of lm-eval:NAME the task's own).",
        None,
        panel=TASKS,
        least=0,
    )
    scoring: list[str] = option(
        f"What is scored: {', '.join(SCORINGS)} (docs/evaluation.md; default: letter, and exact for AGIEval).",
        [],
        panel=TASKS,
    )
    max_questions: int | None = option(
        "Only the first questions of each subject, or problems of each --code file.",
        None,
        panel=TASKS,
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scoring("--scoring", self.scoring)

    def arguments(self) -> dict[str, Any]:
        """What decides the figures; without --shots what 0 is."""
        return {**super().arguments(), "shots": self.shots or 0}


def check_scoring(flag: str, words: list[str]) -> None:
    """Raises `UsageError` where a word is no scoring."""
    for word in words:
        if word not in SCORINGS:
            raise UsageError(f"{flag} {word}: must be one of {', '.join(SCORINGS)}.")


@dataclass(frozen=True)
class CodeOptions(Options):
    """How programs are generated and run."""

    allow_code_execution: bool = option(
        "Run the programs that the models write, in a sandbox; nothing is run without this.",
        False,
        panel=CODE,
        decides=False,
    )
    code_samples: int = option(
        "Programs for each problem: pass@10 needs 10, pass@100 needs 100.", 1, panel=CODE, least=1
    )
    code_temperature: float | None = option(
        "Sampling temperature (default: 0 for one program, 0.8 for several).", None, panel=CODE, least=0
    )
    code_top_p: float = option("Nucleus sampling of programs (top-p).", 0.95, panel=CODE, least=0.01, most=1)
    code_tokens: int = option("Maximum number of new tokens of a program.", 512, panel=CODE, least=1)
    code_seconds: float = option("CPU seconds that a program may take.", 3.0, panel=CODE, least=0.1)
    code_seed: int = option(SEED, 0, panel=CODE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_samples > 1 and self.heat() == 0:
            raise UsageError(
                f"--code-samples {self.code_samples} contradicts --code-temperature 0: all programs of a problem would be the same."
            )

    def heat(self) -> float:
        """The temperature."""
        if self.code_temperature is None:
            return 0.0 if self.code_samples == 1 else 0.8
        return self.code_temperature


@dataclass(frozen=True)
class Asked:
    """What models are asked besides documents: `tasks` and `code` are words as `EvaluateOptions` has them."""

    tasks: list[str] = field(default_factory=list)
    asking: TaskOptions = field(default_factory=TaskOptions)
    code: list[str] = field(default_factory=list)
    programs: CodeOptions = field(default_factory=CodeOptions)


@dataclass(frozen=True)
class ScoreDataOptions(Options):
    """`model`: one, or two to compare."""

    model: list[Path] = option(
        "The model that scores; of a second one, the difference is written as well.",
        reads="model",
        decides=False,
    )
    data: list[Path] = option(f"Texts: {TEXTS_HELP}.", decides=False)
    output: Path = option(
        "Directory of JSON lines to write: the documents and their bits per byte.",
        writes="scored",
        decides=False,
    )
    max_length: int = option(
        "Maximum number of tokens per input; longer documents are scored in windows.", 2048, least=2
    )
    batch_tokens: int = option("Number of tokens per batch.", 4096, least=2, decides=False)
    dtype: Dtype = option(DTYPE, "float32")
    reading: ReadOptions = group(ReadOptions, argument="reading")
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.model) > 2:
            raise UsageError("--model takes one model, or two to compare.")


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """`data`, `tasks` and `code` are `[LABEL=]PATH`; at least one of them is given."""

    model: list[Path] = option("Model directories to compare.", reads="models")
    data: list[str] = option(f"[LABEL=]PATH of documents: {TEXTS_HELP}.", [])
    tasks: list[str] = option(
        "Multiple-choice tasks: [NAME=]PATH of question files or of the directory of MMLU, C-Eval, CMMLU, AGIEval, "
        "GAOKAO-Bench; or lm-eval:NAME, any task of lm-evaluation-harness.",
        [],
        panel=TASKS,
    )
    asking: TaskOptions = group(TaskOptions)
    code: list[str] = option(
        "[LABEL=]PATH of programming problems as HumanEval or MBPP have them; needs --allow-code-execution.",
        [],
        panel=CODE,
    )
    programs: CodeOptions = group(CodeOptions)
    output: Path | None = option(
        "Write the tables to this file (.json, .md or .html); nothing is done if it is up to date.",
        None,
        writes="table",
    )
    protocol: ProtocolOptions = group(ProtocolOptions)
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data and not self.tasks and not self.code:
            raise UsageError("give --data (documents), --tasks (questions), --code (problems), or several.")
        if self.code and not self.programs.allow_code_execution:
            raise UsageError(
                "--code runs programs that models write; add --allow-code-execution to run them in a sandbox."
            )


@dataclass(frozen=True)
class SamplingOptions(Options):
    """How tokens are chosen: the likeliest one at temperature 0, else drawn from those that `top_k`, `top_p` and `min_p`
    leave, in this order.
    """

    max_new_tokens: int = option("Maximum number of new tokens.", 64, least=1)
    temperature: float = option("Sampling temperature; 0 takes the most likely token.", 0.0, least=0)
    top_p: float = option(
        "Nucleus sampling (top-p): total probability of the tokens kept.", 1.0, least=0.01, most=1
    )
    top_k: int = option("Draw from this number of most likely tokens; 0 for all.", 0, least=0)
    min_p: float = option(
        "Draw from tokens that have at least this part of the probability of the most likely one.",
        0.0,
        least=0,
        most=1,
    )
    repetition_penalty: float = option(
        "Divide the scores of tokens that were there before by this (arXiv 1909.05858); 1 for none.",
        1.0,
        least=0.01,
        most=100,
    )
    stop: list[str] = option(
        "Texts that end the continuation; they are not part of it. Commas do not divide them.",
        [],
        commas=False,
    )
    seed: int = option(SEED, 0)
    dtype: Dtype = option(DTYPE, "float32")
    memory: MemoryOptions = group(MemoryOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature and not COLDEST <= self.temperature <= HOTTEST:
            raise UsageError(
                f"--temperature {self.temperature} must be 0, or from {COLDEST:g} to {HOTTEST:g}; 0.7 to 1 is usual."
            )

    def arguments(self) -> dict[str, Any]:
        """What decides the text. Options that version 0.1 did not have count where they are used."""
        later = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop": []}
        return {
            name: value
            for name, value in super().arguments().items()
            if later.get(name) != value or name not in later
        }


@dataclass(frozen=True)
class GenerateOptions(Options):
    """One of `prompt` and `prompts`. `output` is a text file for the one, .jsonl for the other."""

    model: Path = option("Model directory.", reads="model")
    prompt: str | None = option("The text to continue.", None)
    prompts: Path | None = option(
        "Continue every prompt of this file: .jsonl (field 'prompt'), .csv, .parquet, or .txt with one a line.",
        None,
    )
    sampling: SamplingOptions = group(SamplingOptions)
    batch_tokens: int = option("Number of tokens per batch of --prompts.", 4096, least=1, decides=False)
    output: Path | None = option(
        "Also write the text to this file (.jsonl for --prompts); nothing is done if it is up to date.",
        None,
        writes="text",
    )
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.prompt is None) == (self.prompts is None):
            raise UsageError("give one of --prompt (a text) and --prompts (a file).")


@dataclass(frozen=True)
class ChatOptions(Options):
    """A conversation; each answer has a seed of its own, `seed` and those after it."""

    model: Path = option("Model directory.", reads="model")
    system: str = option("System prompt: what the model is told before the conversation.", "")
    chat_template: Path | None = option(
        "Chat template in place of the model's own: a Jinja file, or chatml, llama3 or ziya.", None
    )
    sampling: SamplingOptions = group(SamplingOptions, temperature=0.7, max_new_tokens=512)
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
