"""`prepare-data`: chunks to shards, shards to bins, bins to parts; what is finished is never done twice.

Everything on the way lies in OUT's hidden sibling, so a killed run continues from its finished shards and
parts.
"""

import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.console import progress, say, warn
from llmforge.corpus import Chunk, SourceNames, find_chunks
from llmforge.dataset.assemble import Assembly, lines_before, remove
from llmforge.dataset.conversations import check_template
from llmforge.dataset.dedup import minhash_library
from llmforge.dataset.encoding import Choice, choose_backend, save_framed, save_reference
from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.packed import refuse_bytes
from llmforge.dataset.quality import QualitySettings, contaminant_codes, read_blocklist
from llmforge.dataset.shards import (
    ShardSettings,
    Summary,
    attempt_sample,
    ids_type,
    make_shard,
    read_summary,
    shard_path,
    start_encoder,
)
from llmforge.dataset.workers import LocalRun, RayRun, available_cores, is_small
from llmforge.errors import InterruptionError, UserError
from llmforge.steps import Finished, Outcome, Step, fingerprint, read_manifest, remove_tree, run_step
from llmforge.tokenizer import Tokenizer, load_unbuilt
from llmforge.tokenizer.files import tokenizer_files

EARLY_SHARDS = 4  # per worker, made while it is not yet known whether gigatoken is exact
STEP, SHARD_STEP = "prepare-data", "prepare-data-shard"
TEXT_KINDS = (".txt", ".md")
SUFFIXES = ("ids", "records", "spans", "hashes", "minhash", "rejected", "json")


def prepare_data(options: PrepareOptions) -> Finished:
    """Prepares the dataset (or, with `shard`, one part of the way to it); `UserError` for what the user can
    correct.
    """
    refuse_bytes(options.output.absolute())
    chunks = find_chunks(options.data, options.reading.lines)
    if options.reading.numbers and (without := next((c for c in chunks if c.kind in TEXT_KINDS), None)):
        raise UserError(
            f"{without.name} is a text without fields, and --order and --keep need {', '.join(options.reading.numbers)} of every "
            "document; give what llmforge score-data writes."
        )
    workers = options.workers or (1 if is_small(options.data) else available_cores())
    tokenizer = open_tokenizer(options)
    if options.dedup == "near":
        minhash_library()
    template = check_template(options.chat) if options.chat else ""
    arguments = options.identity(tokenizer.fingerprint, template)

    def build(partial: Path) -> Outcome:
        preparation = _Preparation(options, tokenizer, arguments, chunks, partial, workers)
        try:
            return preparation.make_shards() if options.shard else preparation.make_dataset()
        except UserError as error:
            if not isinstance(error, InterruptionError):  # nothing continues from it
                preparation.abandon_cache()
            raise

    if options.shard:
        directory = shard_dir(options.output, *options.shard)
        return run_step(
            _step(options, SHARD_STEP, directory, {**arguments, "shard": [*options.shard]}), build
        )
    return run_step(_step(options, STEP, options.output, arguments), build)


def open_tokenizer(options: PrepareOptions) -> Tokenizer:
    """The tokenizer of `options`, which must be able to end a document; built when the workers have begun."""
    tokenizer = load_unbuilt(options.tokenizer, options.tokenizer_scheme)
    if tokenizer.eos_id is None:
        raise UserError(
            f"{options.tokenizer} has no end-of-sequence token to separate documents; set eos_token in its tokenizer_config.json."
        )
    return tokenizer


def shard_dir(output: Path, number: int, count: int) -> Path:
    """Where `--shard number/count` of a preparation of `output` lies."""
    return output.with_name(f"{output.name}.shards") / f"{number}-of-{count}"


def _step(options: PrepareOptions, name: str, output: Path, arguments: dict[str, Any]) -> Step:
    return Step(name, output, arguments, inputs_of(options), options.overwrite, resumable=True)


def inputs_of(options: PrepareOptions) -> list[Path]:
    """Everything that decides the dataset, in the order of its manifest."""
    return [*options.data, *tokenizer_files(options.tokenizer)]


class _Preparation:
    """One run, in the hidden directory `partial`."""

    def __init__(
        self,
        options: PrepareOptions,
        tokenizer: Tokenizer,
        arguments: dict[str, Any],
        chunks: list[Chunk],
        partial: Path,
        workers: int,
    ) -> None:
        self.options, self.tokenizer, self.chunks, self.workers = options, tokenizer, chunks, workers
        self.arguments = arguments
        self.partial = partial.resolve()
        self.work = self.partial / ".work"
        self.shards, self.encoder = self.work / "shards", self.work / "encoder"

    def abandon_cache(self) -> None:
        """Deletes what a mistake leaves in --cache-dir: the link to it goes with the hidden directory."""
        if self.work.is_symlink() and self.work.is_dir():
            remove_tree(self.work.resolve())

    def make_dataset(self) -> Outcome:
        """All of it: shards (or those of other machines), bins, parts."""
        done = self.work / "outcome.json"
        parts = self.partial if self.options.flat else self.partial / "arrow"
        if not done.is_file():
            self._make_work()
            with self._runner() as run_all:
                given = self._gather_shards() if self.options.merge else None
                choice, summaries = self._encode(self.chunks, run_all, given)
                self._check_rejected(self.chunks, summaries)
                assembly = Assembly(
                    self.options,
                    self.chunks,
                    summaries,
                    self.shards,
                    self.work / "bins",
                    self.encoder,
                    ids_type(self.tokenizer.size),
                    parts,
                    self.partial,
                )
                _write_json(done, assembly.run(run_all, self.tokenizer.fingerprint, choice))
        outcome = json.loads(done.read_text(encoding="utf-8"))
        # The outcome goes last: until then a killed run finds it again.
        for entry in [*(e for e in self.work.iterdir() if e != done), *parts.glob(".part-*")]:
            remove(entry)
        done.unlink()
        self._remove_work()
        return Outcome(**outcome)

    def make_shards(self) -> Outcome:
        """The chunks of one `--shard`, for a `--merge` to come."""
        assert self.options.shard
        self._make_work()
        chunks = chunks_of_shard(self.chunks, *self.options.shard)
        with self._runner() as run_all:
            choice, summaries = self._encode(chunks, run_all)
        for summary in summaries:
            for suffix in SUFFIXES:
                shard_path(self.shards, summary.number, suffix).rename(
                    shard_path(self.partial, summary.number, suffix)
                )
        for entry in self.work.iterdir():
            remove(entry)
        self._remove_work()
        figures = {
            key: sum(asdict(s)[key] for s in summaries)
            for key in ("documents", "tokens", "bytes", "rejected")
        }
        return Outcome(metrics={**figures, "encoder": choice.__dict__})

    def _make_work(self) -> None:
        if self.work.is_symlink() and not self.work.exists():
            self.work.unlink()  # the cache was cleared while the run was interrupted
        if self.options.cache_dir and not self.work.exists():
            self.options.cache_dir.mkdir(parents=True, exist_ok=True)
            self.work.symlink_to(tempfile.mkdtemp(prefix="llmforge-", dir=self.options.cache_dir.resolve()))
        self.shards.mkdir(parents=True, exist_ok=True)

    def _remove_work(self) -> None:
        self.work.resolve().rmdir()
        self.work.unlink(missing_ok=True)

    def _runner(self) -> LocalRun | RayRun:
        return RayRun(self.options.ray) if self.options.ray else LocalRun(self.workers)

    def _encode(
        self, chunks: Sequence[Chunk], run_all: LocalRun | RayRun, given: Choice | None = None
    ) -> tuple[Choice, list[Summary]]:
        """gigatoken or tokenizers, by documents from all over the corpus, and the shards of `chunks`.

        A few shards are begun with gigatoken while the sample is still compared, and made again if it is not
        exact. A resumed run keeps its choice.
        """
        path = self.work / "choice.json"
        if path.is_file():
            given = Choice(**json.loads(path.read_text(encoding="utf-8")))
        save_framed(self.tokenizer, self.encoder, 1 if self.options.ray else self.workers)
        encoder = str(self.encoder)
        if given is None:
            run_all(start_encoder, [(encoder,)] * self.workers)  # while the rest is written
        save_reference(self.tokenizer, self.encoder)
        settings = self._settings()
        early: Iterator[Summary] = iter(())
        begun, choice = 0, given
        if choice is None:
            self._forget_shards()  # of a run that was killed before it had chosen
            attempts = run_all(attempt_sample, [(encoder, self.chunks, self.options.reading)])
            begun = min(len(chunks), EARLY_SHARDS * self.workers)
            early = self._shards(settings, chunks[:begun], run_all)
            _ = self.tokenizer.backend  # refuses, while they work, what does not make a tokenizer
            attempt = next(attempts)
            choice = choose_backend(attempt, self.tokenizer)
            if choice.backend != "gigatoken" and not attempt.refusal:
                deque(early, maxlen=0)
                self._forget_shards()
                begun, early = 0, iter(())
        say(f"encoding with {choice.backend}: {choice.reason}")
        _write_json(path, choice.__dict__)
        rest = self._shards(replace(settings, backend=choice.backend), chunks[begun:], run_all)
        return choice, self._collect(chunks, chain(early, rest))

    def _shards(
        self, settings: ShardSettings, chunks: Sequence[Chunk], run_all: LocalRun | RayRun
    ) -> Iterator[Summary]:
        return run_all(make_shard, [(settings, chunk, self.shards) for chunk in chunks])

    def _forget_shards(self) -> None:
        for file in self.shards.iterdir():
            file.unlink()

    def _settings(self) -> ShardSettings:
        options = self.options
        contaminants = ""
        if options.decontaminate:
            contaminants = str(self.work / "contaminants.npy")
            np.save(contaminants, contaminant_codes(options.decontaminate))
        return ShardSettings(
            encoder=str(self.encoder),
            backend="gigatoken",
            ids_type=ids_type(self.tokenizer.size),
            reading=options.reading,
            seed=options.seed,
            hashes=bool(options.holdout or options.dedup),
            minhash=options.dedup == "near",
            quality=QualitySettings(
                options.quality == "gopher",
                read_blocklist(options.blocklist) if options.blocklist else (),
                contaminants,
            ),
            chat=options.chat,
            order=options.order,
            by=options.by,
            keep=options.keep,
        )

    def _collect(self, chunks: Sequence[Chunk], shards: Iterator[Summary]) -> list[Summary]:
        """The summaries of `chunks`, with a line of progress."""
        summaries: list[Summary] = []
        names = SourceNames(self.options.reading)
        total = sum(chunk.size for chunk in chunks) / 1e6
        began, documents, tokens, size = time.monotonic(), 0, 0, 0.0
        with progress("encode", total, "MB") as advance:
            for chunk, summary in zip(chunks, shards, strict=True):
                summaries.append(summary)
                documents, tokens = documents + summary.documents, tokens + summary.tokens
                size += chunk.size / 1e6
                passed = max(time.monotonic() - began, 1e-3)
                note = f"{documents:,} documents, {size / passed:.1f} MB/s, {tokens / passed:,.0f} tokens/s"
                advance(chunk.size / 1e6, f"{note}, {(total - size) * passed / max(size, 1e-9):.0f} s left")
                if self.options.on_bad_line == "stop" and summary.rejected:
                    where = _first_bad(chunks, summaries)
                    raise UserError(f"{where}; correct it, or leave out --on-bad-line stop.")
                names.add(summary.sources)
        names.say()
        return summaries

    def _check_rejected(self, chunks: Sequence[Chunk], summaries: Sequence[Summary]) -> None:
        for i, summary in enumerate(summaries):
            if summary.rejected and json.loads(summary.first_rejected)["line"] == 0:
                warn(f"{_first_bad([chunks[i]], [summary])}; the rest of the file is missing")
        rejected, read = sum(s.rejected for s in summaries), sum(s.documents for s in summaries)
        inputs = ", ".join(map(str, self.options.data))
        if read == 0 and rejected == 0:
            raise UserError(f"{inputs}: no documents found.")
        if rejected > self.options.max_rejected * (read + rejected):
            first = _first_bad(chunks, summaries)
            asked = self.options.format == "text" and ": no '" in first
            hint = (
                " If its records are conversations, give --format chat; if their text is in another field, --text-field."
                if asked
                else ""
            )
            raise UserError(
                f"{rejected:,} of {read + rejected:,} documents cannot be used, more than --max-rejected "
                f"{self.options.max_rejected:.3%} allows; the first is {first}.{hint}"
            )
        if read == 0:
            raise UserError(f"{inputs}: none of the documents can be used.")

    def _gather_shards(self) -> Choice:
        """Links the shards of all `--shard` runs into the working directory, having checked that they belong
        here.
        """
        root = self.options.output.with_name(f"{self.options.output.name}.shards")
        found = sorted(root.glob("*-of-*")) if root.is_dir() else []
        counts = {path.name.partition("-of-")[2] for path in found}
        if len(counts) != 1:
            what = f"shards of {' and of '.join(sorted(counts))}" if counts else "no shard"
            raise UserError(f"{root} contains {what}; run --shard 0/N to --shard N-1/N, with the same N.")
        count = int(counts.pop())
        inputs = [fingerprint(path) for path in inputs_of(self.options)]
        choices = []
        for number in range(count):
            directory = shard_dir(self.options.output, number, count)
            if not directory.exists():
                raise UserError(f"{directory} is missing; run --shard {number}/{count}, then --merge.")
            manifest = read_manifest(directory, SHARD_STEP, ["metrics.encoder"])
            for key, value in self.arguments.items():
                if json.loads(json.dumps(value)) != manifest.arguments.get(key):
                    raise UserError(
                        f"{directory} was made with {key} = {manifest.arguments.get(key)}, not {value}; "
                        "give --merge the same flags as every --shard."
                    )
            if [i.fingerprint for i in manifest.inputs] != inputs:
                raise UserError(f"{directory} was made from other inputs; run it again.")
            choices.append(Choice(**manifest.metrics["encoder"]))
            for file in directory.iterdir():
                link = self.shards / file.name
                if file.suffix.removeprefix(".") in SUFFIXES and file.name[0].isdigit() and not link.exists():
                    link.symlink_to(file.resolve())
        missing = [c.name for c in self.chunks if read_summary(self.shards, c.number) is None]
        if missing or len({choice.backend for choice in choices}) > 1:
            why = f"{missing[0]} is in none of them" if missing else "they were encoded in different ways"
            raise UserError(
                f"the shards in {root} do not belong to this corpus ({why}); run all --shard commands again."
            )
        return choices[0]


def chunks_of_shard(chunks: Sequence[Chunk], number: int, count: int) -> list[Chunk]:
    """The chunks of one shard: neighbors, and about the same number of bytes in every shard."""
    middles = np.cumsum([chunk.size for chunk in chunks]) - np.array([chunk.size for chunk in chunks]) / 2
    total = max(1, sum(chunk.size for chunk in chunks))
    shard = np.minimum((middles * count / total).astype(np.int64), count - 1)
    return [chunk for chunk, one in zip(chunks, shard.tolist(), strict=True) if one == number]


def _first_bad(chunks: Sequence[Chunk], summaries: Sequence[Summary]) -> str:
    """Where and why the first line that cannot be used is."""
    i = next(i for i, summary in enumerate(summaries) if summary.rejected)
    bad = json.loads(summaries[i].first_rejected)
    line = f", line {lines_before(chunks, summaries)[i] + bad['line']}" if bad["line"] else ""
    return f"{chunks[i].name}{line}: {bad['reason']}"


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)
