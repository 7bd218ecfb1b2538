"""Shards to a dataset: documents to bins, bins to parts, and the account of all that was read."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge.console import progress, warn
from llmforge.corpus import Chunk
from llmforge.dataset.categories import MIXED
from llmforge.dataset.conversations import SPLIT
from llmforge.dataset.encoding import Choice
from llmforge.dataset.holdout import write_holdout
from llmforge.dataset.ledger import Ledger
from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.planning import BinFiles, category_names, place
from llmforge.dataset.selection import HELD_OUT, LEFT_OUT, Selection
from llmforge.dataset.shards import Summary, shard_path
from llmforge.dataset.workers import Run
from llmforge.dataset.writing import DATA_FILE, ONLY_MASKED, PartSettings, part_path, write_part

REJECTED, HOLDOUT = "rejected.jsonl", "holdout"


@dataclass(frozen=True)
class Assembly:
    """Where everything lies: the shards of `chunks`, the bins to come, and the `output` being built."""

    options: PrepareOptions
    chunks: Sequence[Chunk]
    summaries: Sequence[Summary]
    shards: Path
    bins: Path
    encoder: Path
    ids_type: str
    parts: Path
    output: Path

    def run(self, run_all: Run, tokenizer: str, choice: Choice) -> dict[str, Any]:
        """Writes parts, holdout and `rejected.jsonl`; returns what an `Outcome` holds.

        `tokenizer` is its fingerprint.
        """
        names = category_names(self.summaries)
        if MIXED in names and len(names) > 1:
            warn(
                f"documents have the category '{MIXED}', which is also the name for rows of several categories; both are counted together"
            )
        ledger = Ledger(names)
        with (self.output / REJECTED).open("w", encoding="utf-8") as file:
            write = _RejectedWriter(file, self.chunks, self.summaries)
            self._account_for_bad_lines(ledger, write)
            held_out = self._place(names, ledger, write)
            parts = self._write_parts(names, run_all)
            for figures in parts:
                for number, line, tokens, category in figures.pop("rejected"):
                    write(
                        number,
                        {"line": line, "reason": ONLY_MASKED, "category": names[category], "tokens": tokens},
                    )
        if held_out:
            write_holdout(self.output / HOLDOUT, self.chunks, self.options.reading, held_out)
        fingerprints = {}
        for number, figures in enumerate(parts):
            name = (part_path(self.parts, number) / DATA_FILE).relative_to(self.output).as_posix()
            fingerprints[name] = figures.pop("fingerprint")
            del figures["documents"]
            ledger.write(figures.pop("written"))
            ledger.reject_named(ONLY_MASKED, figures.pop("only_masked"))
        ledger.check()
        rows, tokens = sum(p["rows"] for p in parts), sum(p["tokens"] for p in parts)
        return {
            "outputs": {
                "tokenizer": tokenizer,
                "max_length": self.options.max_length,
                "categories": names,
                "holdout": sorted(file.name for file in (self.output / HOLDOUT).glob("*")),
            },
            "metrics": {
                "rows": rows,
                "tokens": tokens,
                "valid_tokens": sum(p["valid_tokens"] for p in parts),
                "bytes": sum(p["bytes"] for p in parts),
                "fill": tokens / max(1, rows * self.options.max_length),
                "encoder": choice.__dict__,
                "ledger": ledger.as_json(),
                **self._splits(),
                "parts": parts,
            },
            "fingerprints": fingerprints,
        }

    def _splits(self) -> dict[str, Any]:
        """What --long-conversations split did."""
        if self.options.long_conversations != "split":
            return {}
        counts = (sum(summary.split.get(name, 0) for summary in self.summaries) for name in SPLIT)
        return {"split": dict(zip(SPLIT, counts, strict=True))}

    def _account_for_bad_lines(self, ledger: Ledger, write: Callable[[int, dict[str, Any]], None]) -> None:
        for summary in self.summaries:
            if summary.rejected:
                with shard_path(self.shards, summary.number, "rejected").open(encoding="utf-8") as rejects:
                    for entry in map(json.loads, rejects):
                        ledger.reject_unread(entry["reason"], entry["category"], entry["documents"])
                        write(summary.number, entry)

    def _place(
        self, names: list[str], ledger: Ledger, write: Callable[[int, dict[str, Any]], None]
    ) -> dict[int, npt.NDArray[np.uint32]]:
        """Every document to its bin or its reason; returns the lines of held-out documents by chunk."""
        shutil.rmtree(self.bins, ignore_errors=True)
        self.bins.mkdir()
        selection = Selection(self.options, self.shards, self.summaries, names)
        files, held_out = BinFiles(self.bins), {}
        for summary, before, records in selection.shard_records():
            ledger.read(records)
            code, bins = selection.judge(summary, before, records)
            keep = code == 0
            files.add(bins[keep], place(records[keep], summary.number))
            for number in np.flatnonzero(np.bincount(code[~keep])).tolist():
                reason, which = selection.reasons[number], np.flatnonzero(code == number)
                ledger.reject(reason, records[which])
                if reason == HELD_OUT:
                    held_out[summary.number] = np.sort(records["line"][which])
                elif reason != LEFT_OUT:  # what the user did not ask for is no fault of the document
                    for one in np.sort(records[which], order="line"):
                        entry = {
                            "line": int(one["line"]),
                            "reason": reason,
                            "category": names[one["category"]],
                        }
                        write(summary.number, {**entry, "tokens": int(one["tokens"])})
        files.flush()
        return held_out

    def _write_parts(self, names: list[str], run_all: Run) -> list[dict[str, Any]]:
        settings = PartSettings(
            str(self.shards),
            str(self.bins),
            names,
            self.options.max_length,
            self.options.rows_by,
            str(self.encoder),
            self.ids_type,
        )
        self.parts.mkdir(exist_ok=True)
        for stale in self.parts.glob(".part-*.tmp"):
            remove(stale)
        tasks = [(settings, number, str(self.parts)) for number in range(self.options.bins)]
        parts = []
        with progress("splice", self.options.bins, "parts") as advance:
            for figures in run_all(write_part, tasks):
                parts.append(figures)
                advance(1, f"{figures['rows']:,} rows")
        return parts


class _RejectedWriter:
    """Lines of `rejected.jsonl`: numbers in a chunk become numbers in the file."""

    def __init__(self, file: Any, chunks: Sequence[Chunk], summaries: Sequence[Summary]) -> None:
        self.file, self.chunks = file, chunks
        self.before = lines_before(chunks, summaries)

    def __call__(self, number: int, entry: dict[str, Any]) -> None:
        line = self.before[number] + entry["line"] if entry["line"] else None
        named = {"file": self.chunks[number].name, **entry, "line": line}
        self.file.write(json.dumps(named, ensure_ascii=False) + "\n")


def lines_before(chunks: Sequence[Chunk], summaries: Sequence[Summary]) -> list[int]:
    """How many lines of its file come before each chunk; for as many chunks as there are summaries."""
    before, lines = [], dict[str, int]()
    for chunk, summary in zip(chunks, summaries, strict=False):
        before.append(lines.get(chunk.path, 0))
        lines[chunk.path] = before[-1] + summary.lines
    return before


def remove(path: Path) -> None:
    """Removes a file or a directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
