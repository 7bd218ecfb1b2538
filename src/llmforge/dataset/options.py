# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of prepare-data and inspect-data, and how their values are read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmforge.corpus.options import ReadOptions
from llmforge.dataset.rules import Rule, parse_rules
from llmforge.errors import UsageError
from llmforge.options import OVERWRITE, SEED, TEXTS_HELP, Options, group, option
from llmforge.tokenizer.options import SCHEME

if TYPE_CHECKING:
    from llmforge.dataset.conversations import ChatSettings

Packing = Literal["best-fit", "greedy", "concat"]
ONE = "one"  # how rows are made with --documents-per-row 1
CHAT, CURRICULUM = "Conversations", "Scored documents"
QUALITY, MACHINES, OUTPUTS = "Quality (off by default)", "Several machines", "Other outputs"


def parse_share(flag: str, text: str) -> float:
    """`0.5%` or `0.005` as 0.005; a `UsageError` for anything that is no share."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{flag} {text} is not a fraction; write 0.5% or 0.005.")
    return value


def parse_mix(flag: str, items: Sequence[str]) -> dict[str, float]:
    """`zh=0.7 en=0.3` as a dictionary; weights need not sum to 1."""
    mix: dict[str, float] = {}
    for item in items:
        name, equals, number = item.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not equals or not name or not 0 <= weight < float("inf"):
            raise UsageError(f"{flag} {item} is not CATEGORY=WEIGHT; write zh=0.7,en=0.3.")
        if name in mix:
            raise UsageError(f"{flag} names {name} twice.")
        mix[name] = weight
    if mix and not sum(mix.values()):
        raise UsageError(f"{flag} gives every category the weight 0; at least one must be greater.")
    return mix


def parse_count(flag: str, text: str) -> int:
    """`2000000`, `2M`, `1.5B` or `2e6` as a number."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([KMBT]?)", text.replace("_", ""), re.IGNORECASE)
    try:
        value = float(match[1]) * 1000 ** " KMBT".index(match[2].upper() or " ") if match else -1.0
    except ValueError:
        value = -1.0
    if value < 0:
        raise UsageError(f"{flag} {text} is not a number; write 2000000, 2M or 1.5B.")
    return round(value)


def parse_shard(flag: str, text: str) -> tuple[int, int] | None:
    """`0/4` as (0, 4)."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(f"{flag} {text} is not I/N; shards are counted from 0: 0/4, 1/4, 2/4 and 3/4.")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class PrepareOptions(Options):
    """A preparation. `holdout` and `max_rejected` are shares, 0 to 1.

    `data` are paths, or datasets on the Hub until they are fetched. `mix`: category to weight; `max_tokens` 0: all.
    `dedup`: "", "exact" or "near". `shard`: (number from 0, of how many). `workers` 0: one per core. `ray`: "local" or
    the address of a cluster. `documents_per_row` 1: a row is a document or a part of one, whatever `packing`; 0: no
    limit. `cache_dir`: where the shards lie while the work continues, instead of beside the output. With
    `arrow_output_dir` the parts lie in the output itself rather than in its `arrow`; `output` is that directory then.
    """

    data: list[Path] = option(f"Texts: {TEXTS_HELP}.", decides=False)
    tokenizer: Path = option(
        "The tokenizer, or a model with its tokenizer.", reads="tokenizer", decides=False
    )
    output: Path = option(
        "Dataset directory to write; its parts are in OUTPUT/arrow.", None, writes="dataset", decides=False
    )
    max_length: int = option("Number of tokens per row.", 4096, least=2)
    bins: int = option(
        "Number of parts, each with the same number of tokens of every category.",
        10,
        least=1,
        argument="num_spliced_dataset_bins",
    )
    packing: Packing = option(
        "How documents are packed into rows: best-fit (fewest rows), greedy (in order), concat (one stream).",
        "best-fit",
        argument="splice",
    )
    documents_per_row: int = option(
        "1: one document (or part of one) per row, for models with recurrent state; 0: no limit.",
        0,
        least=0,
        most=1,
    )
    tokenizer_scheme: str | None = option(SCHEME, None, decides=False)
    reading: ReadOptions = group(ReadOptions)
    format: Literal["text", "chat", "messages", "sharegpt", "alpaca", "prompt-completion"] = option(
        "What records are: texts; or conversations, told apart by their fields (chat) or all of one layout. With chat, records that "
        "are none are texts.",
        "text",
        panel=CHAT,
        decides=False,
    )
    chat_template: Path | None = option(
        "Chat template in place of the tokenizer's own: a Jinja file, or chatml, llama3 or ziya.",
        None,
        panel=CHAT,
        decides=False,
    )
    train_on: Literal["all", "last"] = option(
        "Answers of the assistant that are trained: all, or the last one.", "all", panel=CHAT, decides=False
    )
    long_conversations: Literal["continue", "split"] = option(
        "A conversation longer than a row: continue in the next row, or split before questions of the user into conversations that "
        "fit, each with the system message.",
        "continue",
        panel=CHAT,
        decides=False,
    )
    order: Literal["", "easy-to-hard", "hard-to-easy"] = option(
        "Order of documents over the bins, by the number in --by (default: random); bins are then stages of a curriculum.",
        "",
        panel=CURRICULUM,
        metavar="[easy-to-hard|hard-to-easy]",
        decides=False,
    )
    by: str = option(
        "For --order: field of a number, larger for harder documents; score-data writes bits_per_byte.",
        "bits_per_byte",
        panel=CURRICULUM,
        decides=False,
    )
    keep: tuple[Rule, ...] = option(
        "Keep only documents for which this holds, such as 'bits_per_byte<1.2'; several: all must hold.",
        (),
        panel=CURRICULUM,
        parse=parse_rules,
        many=True,
        metavar="RULE...",
        decides=False,
    )
    mix: dict[str, float] = option(
        "Proportions of tokens, such as zh=0.7,en=0.3; no document is repeated, so the scarcest category limits the rest.",
        {},
        parse=parse_mix,
        many=True,
        metavar="CATEGORY=WEIGHT...",
    )
    max_tokens: int = option(
        "Maximum number of tokens: 2000000, 2M, 1.5B; 0 for all.",
        0,
        parse=parse_count,
        metavar="COUNT",
        shown="0",
    )
    holdout: float = option(
        "Fraction of each category's documents to hold out in OUTPUT/holdout, at least one document; such as 0.5%.",
        0.0,
        parse=parse_share,
        metavar="SHARE",
        shown="0",
    )
    on_bad_line: Literal["reject", "stop"] = option(
        "What to do with an unusable line: reject (count it and continue) or stop.", "reject", decides=False
    )
    max_rejected: float = option(
        "Fraction of unusable lines above which the command fails.",
        0.01,
        parse=parse_share,
        metavar="SHARE",
        shown="1%",
        decides=False,
    )
    dedup: Literal["", "exact", "near"] = option(
        "Drop duplicate documents: exact, or near (and exact) by MinHash.",
        "",
        panel=QUALITY,
        metavar="[exact|near]",
    )
    quality: Literal["", "gopher"] = option(
        "Drop documents by quality rules: gopher.", "", panel=QUALITY, metavar="[gopher]"
    )
    blocklist: Path | None = option(
        "Drop documents that match one of this file's regular expressions.", None, panel=QUALITY
    )
    decontaminate: list[Path] = option(
        "Drop documents that share 13 words in a row with these files.", [], panel=QUALITY
    )
    shard: tuple[int, int] | None = option(
        "Do one shard of the work, 0/4 to 3/4 of four, on any machine.",
        None,
        panel=MACHINES,
        parse=parse_shard,
        metavar="I/N",
        decides=False,
    )
    merge: bool = option(
        "Join the outputs of all --shard runs into the dataset.", False, panel=MACHINES, decides=False
    )
    ray: str = option(
        "Run on the Ray cluster at this address (or: local).", "", panel=MACHINES, decides=False
    )
    workers: int = option(
        "Number of processes; 0 for one per core.", 0, panel=MACHINES, least=0, decides=False
    )
    cache_dir: Path | None = option(
        "Directory for intermediate files (default: beside the output).", None, panel=OUTPUTS, decides=False
    )
    arrow_output_dir: Path | None = option(
        "Instead of --output: dataset directory to write, its parts directly in it.",
        None,
        panel=OUTPUTS,
        decides=False,
        writes="dataset",
    )
    jsonl_output_dir: Path | None = option(
        "Also write the rows as JSON lines to this directory.", None, panel=OUTPUTS, decides=False
    )
    dry_run: bool = option("Predict tokens, rows, size and time from a sample.", False, decides=False)
    seed: int = option(SEED, 42)
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arrow_output_dir is not None and self.output is None:
            object.__setattr__(self, "output", self.arrow_output_dir)
        elif self.output is None or self.arrow_output_dir not in (None, self.output):
            raise UsageError(
                "--output and --arrow-output-dir (Colossal-LLaMA's) both name the output; give one of them."
            )
        if self.merge and self.shard:
            raise UsageError("--shard encodes one shard and --merge joins all; give one of them.")
        if self.documents_per_row and self.packing != "best-fit":
            raise UsageError(
                f"--packing {self.packing} puts several documents into a row, and --documents-per-row 1 does not; give one of them."
            )
        if self.format == "text" and (self.chat_template or self.train_on != "all"):
            raise UsageError(
                "--chat-template and --train-on are for conversations; give --format chat as well."
            )
        if self.long_conversations == "split":
            if self.format == "text":
                raise UsageError(
                    "--long-conversations split is for conversations; give --format chat as well."
                )
            if self.train_on == "last":
                raise UsageError(
                    "--long-conversations split contradicts --train-on last: only the last part would have an answer to train; "
                    "give one of them."
                )
        if self.by != "bits_per_byte" and not self.order:
            raise UsageError("--by names the number of --order; give --order easy-to-hard as well.")
        numbers = dict.fromkeys([*([self.by] if self.order else []), *(rule.field for rule in self.keep)])
        layout = "" if self.format == "text" else self.format
        if layout or numbers:
            reading = replace(self.reading, conversations=layout, numbers=tuple(numbers))
            object.__setattr__(self, "reading", reading)

    @property
    def flat(self) -> bool:
        """Whether the parts lie in the output itself."""
        return self.arrow_output_dir is not None

    @property
    def rows_by(self) -> str:
        """How `packing` makes rows."""
        return ONE if self.documents_per_row else self.packing

    @property
    def chat(self) -> "ChatSettings | None":
        """How conversations are encoded; None without `format`."""
        from llmforge.dataset.conversations import ChatSettings

        if self.format == "text":
            return None
        return ChatSettings(
            self.tokenizer,
            self.tokenizer_scheme,
            self.chat_template,
            self.train_on == "last",
            self.max_length if self.long_conversations == "split" else None,
        )

    def identity(self, tokenizer_fingerprint: str, template: str = "") -> dict[str, Any]:
        """What decides the bytes of the dataset, besides its inputs; `template` is the text of the chat template."""
        from llmforge.corpus import default_categories
        from llmforge.steps import fingerprint, fingerprint_json

        leaked = [fingerprint(path) for path in self.decontaminate]
        return {
            **self.arguments(),
            "tokenizer": tokenizer_fingerprint,
            "categories": default_categories(self.data),
            "flat": self.flat,
            "blocklist": fingerprint(self.blocklist) if self.blocklist else "",
            **({"tokenizer_scheme": self.tokenizer_scheme} if self.tokenizer_scheme else {}),
            "decontaminate": fingerprint_json(leaked) if leaked else "",
            **(
                {
                    "format": self.format,
                    "chat_template": fingerprint_json(template),
                    "train_on": self.train_on,
                    **({"long_conversations": "split"} if self.long_conversations == "split" else {}),
                }
                if self.format != "text"
                else {}
            ),
            **({"order": self.order, "by": self.by} if self.order else {}),
            **({"keep": [rule.reason for rule in self.keep]} if self.keep else {}),
        }


@dataclass(frozen=True)
class InspectOptions(Options):
    """`output`: a page to write instead of the terminal."""

    data: list[Path] = option(
        "Outputs of prepare-data, or parts of one; also without the flag.",
        metavar="PATH...",
        bare=True,
        commas=False,
        reads="dataset",
    )
    tokenizer: Path | None = option("Decode the samples with this tokenizer.", None, reads="tokenizer")
    tokenizer_scheme: str | None = option(SCHEME, None)
    samples: int = option("Number of rows to show.", 3, least=0)
    output: Path | None = option("Write an HTML page to this file instead.", None, writes="page")
    seed: int = option(SEED, 42)
