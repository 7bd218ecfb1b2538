"""`score-data`: bits per byte of every document, written beside it.

    OUTPUT/00000.jsonl   the documents of a chunk of the input, as records with the fields of `field_names`

A chunk is scored by one model after another, and what is scored is kept, so a killed run continues with the next one.
"""

import gc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmforge.console import progress, warn
from llmforge.corpus import Block, Chunk, find_chunks, read_blocks
from llmforge.corpus.reader import MAX_REJECTED
from llmforge.dataset.holdout import record
from llmforge.errors import UserError
from llmforge.evaluate.options import ScoreDataOptions
from llmforge.evaluate.texts import Corpus
from llmforge.steps import Finished, Outcome, Step, remove_tree, run_step

NAME = "bits_per_byte"
WORK = ".scores"
Scores = npt.NDArray[np.float64]


def field_names(models: int) -> list[str]:
    """The numbers of a document: of the first model, of the second, and the first less the second."""
    return [NAME] if models == 1 else [NAME, f"{NAME}_2", f"{NAME}_difference"]


def score_data(options: ScoreDataOptions) -> Finished:
    """Writes the directory `options.output`. Raises `UserError` for what the user can correct."""
    chunks = find_chunks(options.data, options.reading.lines)
    arguments = {**options.arguments(), "models": len(options.model)}
    inputs = [*options.model, *options.data]
    step = Step("score-data", options.output, arguments, inputs, options.overwrite, resumable=True)

    def build(partial: Path) -> Outcome:
        (partial / WORK).mkdir(exist_ok=True)
        for number, model in enumerate(options.model):
            _score(options, chunks, model, partial / WORK, number)
        outcome = _write(options, chunks, partial)
        remove_tree(partial / WORK)
        return outcome

    return run_step(step, build)


def _blocks(options: ScoreDataOptions, chunk: Chunk) -> Iterator[Block]:
    """The documents of a chunk; text of white space alone is none."""
    for block in read_blocks(chunk, options.reading):
        wanted = [number for number, text in enumerate(block.text.to_pylist()) if text.strip()]
        yield block if len(wanted) == len(block) else block.take(np.array(wanted, np.int64))


def _score(options: ScoreDataOptions, chunks: Sequence[Chunk], model: Path, work: Path, number: int) -> None:
    """Writes (documents,) float64 of bits for each chunk that has none yet."""
    left = [chunk for chunk in chunks if not _scores_path(work, number, chunk).is_file()]
    if not left:
        return
    from llmforge.evaluate.bits import measure
    from llmforge.evaluate.models import load_model
    from llmforge.weights.architecture import positions

    loaded = load_model(model, options.dtype, options.trust_remote_code)
    longest = min(options.max_length, positions(loaded.model.config) or options.max_length)
    with progress(f"score by {model.name}", float(sum(chunk.size for chunk in left)), "bytes") as advance:
        for chunk in left:
            bits: list[Scores] = [np.zeros(0)]
            for block in _blocks(options, chunk):
                if len(block):
                    corpus = Corpus(chunk.name, block.text.to_pylist())
                    found = measure(loaded, corpus, longest, options.batch_tokens, lambda _: None)
                    bits.append(np.array(found.document_bits))
                advance(float(block.size))
            path = _scores_path(work, number, chunk)
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, np.concatenate(bits))
            temporary.replace(path)
    del loaded
    gc.collect()


def _scores_path(work: Path, model: int, chunk: Chunk) -> Path:
    return work / f"{model}-{chunk.number:05d}.npy"


def _write(options: ScoreDataOptions, chunks: Sequence[Chunk], partial: Path) -> Outcome:
    """Writes the documents with their numbers; a `UserError` where too many lines are none."""
    names = field_names(len(options.model))
    totals = np.zeros(len(options.model))
    documents = size = rejected = 0
    first = ""
    for chunk in chunks:
        bits = np.stack([np.load(_scores_path(partial / WORK, i, chunk)) for i in range(len(options.model))])
        at = lines = 0
        with (partial / f"{chunk.number:05d}.jsonl").open("w", encoding="utf-8") as file:
            for block in _blocks(options, chunk):
                for one in block.rejected:
                    rejected += one.documents
                    where = f", line {lines + one.line}" if one.line else ""
                    first = first or f"{chunk.name}{where}: {one.reason}"
                lengths = np.diff(block.text_offsets).astype(np.int64)
                own = bits[:, at : at + len(block)]
                numbers = [*(own / np.maximum(lengths, 1))]
                if len(numbers) == 2:
                    numbers.append(numbers[0] - numbers[1])
                for i in range(len(block)):
                    fields = record(block.segments(i), block.category[i].as_py())
                    fields |= {name: round(float(n[i]), 6) for name, n in zip(names, numbers, strict=True)}
                    file.write(json.dumps(fields, ensure_ascii=False) + "\n")
                at += len(block)
                totals += own.sum(axis=1)
                documents, size = documents + len(block), size + int(lengths.sum())
    if rejected > MAX_REJECTED * (documents + rejected) or not documents:
        raise UserError(
            f"{rejected:,} of {documents + rejected:,} documents cannot be used, more than {MAX_REJECTED:.0%}; the first is "
            f"{first or 'an empty text'}. Correct or remove such lines."
        )
    if rejected:
        warn(f"{rejected:,} of {documents + rejected:,} documents cannot be used; the first is {first}")
    means = dict(zip(names, (totals / size).tolist(), strict=False))
    if len(totals) == 2:
        means[names[2]] = float(totals[0] - totals[1]) / size
    return Outcome(metrics={"documents": documents, "bytes": size, "rejected": rejected, "mean": means})
