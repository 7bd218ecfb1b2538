"""`prepare-data`: chunks to shards, shards to bins, bins to parts; what is finished is never done twice.

Everything on the way lies in OUT's hidden sibling, so a killed run goes on from its finished shards and
parts.
"""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.console import progress, say, warn
from llmforge.data.encoding import Choice, choose_backend
from llmforge.data.holdout import write_holdout
from llmforge.data.ledger import Ledger
from llmforge.data.planning import (
    LAST_KEY,
    BinFiles,
    Count,
    Weighed,
    category_names,
    document_keys,
    each_shard,
    find_cuts,
    place,
    text_keys,
)
from llmforge.data.reading import Fields, read_blocks
from llmforge.data.shards import ShardSettings, Summary, make_shard, shard_path
from llmforge.data.shuffle import Keys
from llmforge.data.sources import Chunk, default_categories, find_chunks
from llmforge.data.splicing import Splice
from llmforge.data.workers import available_cores, run_all
from llmforge.data.writing import ONLY_MASKED, PartSettings, write_part
from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer, load
from llmforge.workspace import Finished, Outcome, Step, run_step

SAMPLE_CHUNKS, SAMPLE_BYTES = 32, 512 << 10
SMALL_INPUT_BYTES = 8 << 20
WORK, REJECTED = ".work", "rejected.jsonl"


@dataclass(frozen=True)
class PrepareOptions:
    """What `prepare-data` is asked for. `holdout` and `max_rejected` are shares, 0 to 1."""

    inputs: list[Path]
    tokenizer_dir: Path
    output: Path
    max_length: int = 4096
    bins: int = 10
    splice: Splice = "best-fit"
    fields: Fields = field(default_factory=Fields)
    holdout: float = 0.0
    stop_on_bad_line: bool = False
    max_rejected: float = 0.01
    seed: int = 42
    workers: int = 0
    overwrite: bool = False

    def arguments(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What decides the bytes of the dataset."""
        return {
            "tokenizer": tokenizer.fingerprint,
            "categories": default_categories(self.inputs),
            "max_length": self.max_length,
            "num_spliced_dataset_bins": self.bins,
            "splice": self.splice,
            "text_field": self.fields.text,
            "category_field": self.fields.category,
            "holdout": self.holdout,
            "seed": self.seed,
        }


def prepare_data(options: PrepareOptions) -> Finished:
    """Prepares the dataset that `options` describe; raises `UserError` for what the user can mend."""
    tokenizer = load(options.tokenizer_dir)
    chunks = find_chunks(options.inputs)
    step = Step(
        name="prepare-data",
        output=options.output,
        arguments=options.arguments(tokenizer),
        inputs=options.inputs,
        overwrite=options.overwrite,
        resumable=True,
    )
    return run_step(step, lambda partial: _Preparation(options, tokenizer, chunks, partial).run())


class _Preparation:
    """One run, in the hidden directory `partial`."""

    def __init__(
        self, options: PrepareOptions, tokenizer: Tokenizer, chunks: list[Chunk], partial: Path
    ) -> None:
        self.options, self.tokenizer, self.chunks, self.partial = options, tokenizer, chunks, partial
        self.work = partial / WORK
        self.shards, self.bins, self.parts = self.work / "shards", self.work / "bins", partial / "arrow"
        small = sum(chunk.size for chunk in chunks) < SMALL_INPUT_BYTES
        self.workers = options.workers or (1 if small else available_cores())

    def run(self) -> Outcome:
        done = self.work / "outcome.json"
        if not done.is_file():
            self.shards.mkdir(parents=True, exist_ok=True)
            choice = self._choose_backend()
            settings = ShardSettings(
                str(self.options.tokenizer_dir.resolve()),
                choice.backend,
                self.options.fields,
                self.options.holdout > 0,
            )
            summaries = self._encode(settings)
            outcome = self._splice(settings, summaries, choice)
            _write_json(done, outcome)
        outcome = json.loads(done.read_text(encoding="utf-8"))
        # The outcome goes last: until then a killed run finds it again.
        for entry in [*(e for e in self.work.iterdir() if e != done), *self.parts.glob(".part-*")]:
            _remove(entry)
        shutil.rmtree(self.work)
        return Outcome(**outcome)

    def _choose_backend(self) -> Choice:
        """gigatoken or tokenizers, by documents from all over the corpus; a resumed run keeps the choice."""
        path = self.work / "encoder.json"
        if path.is_file():
            return Choice(**json.loads(path.read_text(encoding="utf-8")))
        choice = choose_backend(self.tokenizer, list(_sample(self.chunks, self.options.fields)))
        say(f"encoding with {choice.backend}: {choice.reason}")
        _write_json(path, choice.__dict__)
        return choice

    def _encode(self, settings: ShardSettings) -> list[Summary]:
        summaries: list[Summary] = []
        total = sum(chunk.size for chunk in self.chunks) / 1e6
        began, documents, tokens, size = time.monotonic(), 0, 0, 0
        tasks = [(settings, chunk, self.shards) for chunk in self.chunks]
        with progress("encode", total, "MB") as advance:
            for chunk, summary in zip(self.chunks, run_all(make_shard, tasks, self.workers), strict=True):
                summaries.append(summary)
                documents, tokens, size = (
                    documents + summary.documents,
                    tokens + summary.tokens,
                    size + chunk.size,
                )
                passed = max(time.monotonic() - began, 1e-3)
                left = (total - size / 1e6) * passed / max(size / 1e6, 1e-9)
                advance(
                    chunk.size / 1e6,
                    f"{documents:,} documents, {size / 1e6 / passed:.1f} MB/s, "
                    f"{tokens / passed:,.0f} tokens/s, {left:.0f} s left",
                )
                if self.options.stop_on_bad_line and summary.rejected:
                    raise UserError(f"{self._place(summaries, chunk)}; mend it, or drop --on-bad-line stop.")
        self._check_rejected(summaries)
        return summaries

    def _place(self, summaries: list[Summary], chunk: Chunk) -> str:
        """Where and why the first bad line of `chunk` is."""
        bad = json.loads(summaries[chunk.number].first_rejected)
        before = sum(
            s.lines for s, c in zip(summaries, self.chunks, strict=False) if c.path == chunk.path
        ) - (summaries[chunk.number].lines)
        line = f", line {before + bad['line']}" if bad["line"] else ""
        return f"{chunk.name}{line}: {bad['reason']}"

    def _check_rejected(self, summaries: list[Summary]) -> None:
        for summary, chunk in zip(summaries, self.chunks, strict=True):
            if summary.rejected and json.loads(summary.first_rejected)["line"] == 0:
                warn(self._place(summaries[: chunk.number + 1], chunk))
        rejected, read = sum(s.rejected for s in summaries), sum(s.documents for s in summaries)
        if read == 0 and rejected == 0:
            raise UserError(f"{', '.join(map(str, self.options.inputs))}: there is no document in there.")
        if rejected > self.options.max_rejected * (read + rejected):
            chunk = next(c for c, s in zip(self.chunks, summaries, strict=True) if s.rejected)
            raise UserError(
                f"{rejected:,} of {read + rejected:,} documents cannot be used, more than --max-rejected "
                f"{self.options.max_rejected:.3%} allows; the first is "
                f"{self._place(summaries[: chunk.number + 1], chunk)}."
            )
        if read == 0:
            raise UserError(f"{', '.join(map(str, self.options.inputs))}: no document in there can be used.")

    def _splice(self, settings: ShardSettings, summaries: list[Summary], choice: Choice) -> dict[str, Any]:
        names = category_names(summaries)
        ledger = Ledger(names)
        shutil.rmtree(self.bins, ignore_errors=True)
        self.bins.mkdir()
        passes = partial(each_shard, self.shards, summaries, names)
        held = self._holdout_cuts(passes, len(names), summaries)
        seed, n = self.options.seed, len(names)

        def kept(summary: Summary, records: Any) -> Any:
            keep = records["verdict"] == 0
            if held is not None:
                keep &= text_keys(seed, self.shards, summary.number) >= held[records["category"]]
            return keep

        def trained() -> Iterator[Weighed]:
            for summary, before, records in passes():
                keep = kept(summary, records)
                yield (
                    records["category"][keep].astype(np.int64),
                    document_keys(seed, before, len(records))[keep],
                    records["tokens"][keep].astype(np.int64),
                )

        totals = np.zeros(n, np.int64)
        for category, _, tokens in trained():
            totals += np.bincount(category, tokens, n).astype(np.int64)
        shares = np.arange(1, self.options.bins) / self.options.bins
        cuts = find_cuts(trained, [(total * shares).astype(np.int64) for total in totals])
        files = BinFiles(self.bins)
        held_out: dict[int, list[int]] = {}
        for summary, before, records in passes():
            keep, key = kept(summary, records), document_keys(seed, before, len(records))
            ledger.read(records)
            if held is not None and not keep.all():
                out = np.flatnonzero(~keep)
                ledger.reject("held out", records[out])
                held_out[summary.number] = out.tolist()
            bins = np.zeros(len(records), np.int64)
            for c in np.unique(records["category"]):
                mine = records["category"] == c
                bins[mine] = np.searchsorted(cuts[c], key[mine], side="right")
            files.add(bins[keep], place(records, summary.number, key)[keep])
        files.flush()
        part_settings = PartSettings(
            str(self.shards),
            str(self.bins),
            names,
            self.options.max_length,
            self.options.splice,
            settings.tokenizer_dir,
        )
        self.parts.mkdir(exist_ok=True)
        for stale in self.parts.glob(".*.tmp"):
            _remove(stale)
        tasks = [(part_settings, number, str(self.parts)) for number in range(self.options.bins)]
        parts: list[dict[str, Any]] = []
        with progress("splice", self.options.bins, "parts") as advance:
            for figures in run_all(write_part, tasks, self.workers):
                parts.append(figures)
                advance(1, f"{figures['rows']:,} rows")
        if held_out:
            write_holdout(self.partial / "holdout", self.chunks, self.options.fields, held_out)
        for figures in parts:
            ledger.write(figures["written"])
            ledger.reject_named(ONLY_MASKED, figures.pop("only_masked"))
        self._write_rejected(summaries, ledger, names, parts)
        ledger.check()
        rows, tokens = sum(p["rows"] for p in parts), sum(p["tokens"] for p in parts)
        for figures in parts:
            del figures["rejected"], figures["written"]
        return {
            "outputs": {
                "tokenizer": self.tokenizer.fingerprint,
                "max_length": self.options.max_length,
                "categories": names,
                "holdout": sorted(f.name for f in (self.partial / "holdout").glob("*")),
            },
            "metrics": {
                "rows": rows,
                "tokens": tokens,
                "valid_tokens": sum(p["valid_tokens"] for p in parts),
                "bytes": sum(p["bytes"] for p in parts),
                "fill": tokens / max(1, rows * self.options.max_length),
                "encoder": choice.__dict__,
                "ledger": ledger.as_json(),
                "parts": parts,
            },
        }

    def _holdout_cuts(self, passes: Any, n: int, summaries: list[Summary]) -> Keys | None:
        """For each category, the text key below which documents are held out."""
        if not self.options.holdout:
            return None

        def texts() -> Iterator[Weighed]:
            for summary, _, records in passes():
                keep = records["verdict"] == 0
                ones = np.ones(int(keep.sum()), np.int64)
                key = text_keys(self.options.seed, self.shards, summary.number)[keep]
                yield records["category"][keep].astype(np.int64), key, ones

        counts = np.zeros(n, np.int64)
        for category, _, ones in texts():
            counts += np.bincount(category, ones, n).astype(np.int64)
        # At least one document of every category that has two: an evaluation needs a text.
        wanted = np.where(counts > 1, np.maximum(1, np.rint(counts * self.options.holdout)), 0).astype(
            np.int64
        )
        cuts = find_cuts(texts, [np.array([k]) for k in wanted])
        return np.array([cut[0] if k else 0 for cut, k in zip(cuts, wanted.tolist(), strict=True)], np.uint64)

    def _write_rejected(
        self, summaries: list[Summary], ledger: Ledger, names: list[str], parts: list[dict[str, Any]]
    ) -> None:
        before: dict[int, int] = {}
        lines: dict[str, int] = {}
        for summary, chunk in zip(summaries, self.chunks, strict=True):
            before[chunk.number] = lines.get(chunk.path, 0)
            lines[chunk.path] = before[chunk.number] + summary.lines
        with (self.partial / REJECTED).open("w", encoding="utf-8") as file:

            def write(chunk: Chunk, entry: dict[str, Any]) -> None:
                line = before[chunk.number] + entry["line"] if entry["line"] else None
                file.write(json.dumps({"file": chunk.name, **entry, "line": line}, ensure_ascii=False) + "\n")

            for summary, chunk in zip(summaries, self.chunks, strict=True):
                if summary.rejected:
                    with shard_path(self.shards, chunk.number, "rejected").open(encoding="utf-8") as rejects:
                        for text in rejects:
                            entry = json.loads(text)
                            ledger.reject_unread(entry["reason"], entry["category"], entry["documents"])
                            write(chunk, entry)
            for figures in parts:
                for number, line, tokens, category in figures["rejected"]:
                    entry = {
                        "line": line,
                        "reason": ONLY_MASKED,
                        "category": names[category],
                        "tokens": tokens,
                    }
                    write(self.chunks[number], entry)


def _sample(chunks: list[Chunk], fields: Fields) -> Iterator[str]:
    """Documents from the beginnings of evenly spaced chunks, the same on every machine."""
    count = min(len(chunks), SAMPLE_CHUNKS)
    for i in range(count):
        left = SAMPLE_BYTES // count
        for block in read_blocks(chunks[i * len(chunks) // count], fields):
            for text in block.text:
                if left <= 0:
                    break
                value = text.as_py()
                left -= len(value.encode())
                yield value
            break


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


__all__ = ["LAST_KEY", "Count", "PrepareOptions", "prepare_data"]
