"""What a preparation would give, from a sample: tokens, rows, size, time. Writes nothing."""

import math
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.corpus import SourceNames, find_chunks, read_blocks
from llmforge.dataset.conversations import ChatEncoder
from llmforge.dataset.encoding import choose_backend, save_framed, save_reference
from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.packing import splice
from llmforge.dataset.prepare import open_tokenizer
from llmforge.dataset.shards import attempt_sample, ids_type, open_encoder
from llmforge.dataset.workers import available_cores
from llmforge.errors import UserError

SAMPLE_CHUNKS = 16
SAMPLE_BYTES = {"gigatoken": 1 << 20, "tokenizers": 64 << 10}  # of text, from each chunk
BYTES_PER_TOKEN = 8  # an id and a label
STARTING_SECONDS = 1.0
# Splicing and writing, as a share of the time of reading and encoding; benchmarks/data_speed.py shows it.
AROUND_ENCODING = {"gigatoken": 0.6, "tokenizers": 0.05}


def forecast(options: PrepareOptions) -> dict[str, Any]:
    """Encodes the first block of evenly spaced chunks and extrapolates; for compressed files by bytes on
    disk.
    """
    tokenizer = open_tokenizer(options)
    chunks = find_chunks(options.data, options.reading.lines)
    total = sum(chunk.size for chunk in chunks)
    count = min(len(chunks), SAMPLE_CHUNKS)
    lengths, categories, text_bytes, disk_bytes, seconds = [], Counter[str](), 0, 0.0, 0.0
    names = SourceNames(options.reading)
    with tempfile.TemporaryDirectory(prefix="llmforge-") as directory:
        save_framed(tokenizer, Path(directory))
        save_reference(tokenizer, Path(directory))
        _ = tokenizer.backend  # refuses what does not make a tokenizer
        choice = choose_backend(attempt_sample(directory, chunks, options.reading), tokenizer)
        encoder = open_encoder(directory, choice.backend)  # the same one, where that is gigatoken
        chat = ChatEncoder(options.chat, encoder) if options.chat else None
        for i in range(count):
            began = time.monotonic()
            block = next(read_blocks(chunks[i * len(chunks) // count], options.reading), None)
            if block is None or not len(block):
                continue
            names.see(block)
            sample = block.head(
                max(1, int(len(block) * min(1.0, SAMPLE_BYTES[choice.backend] / block.text_bytes)))
            )
            seconds += (time.monotonic() - began) * len(sample) / len(block)
            began = time.monotonic()
            encoded = chat.encode(sample := chat.render(sample)) if chat else encoder.encode(sample)
            seconds += time.monotonic() - began
            documents = np.diff(encoded.offsets)
            lengths.append(documents)
            for name, tokens in zip(sample.category.to_pylist(), documents.tolist(), strict=True):
                categories[name] += tokens
            text_bytes += sample.text_bytes
            disk_bytes += sample.size
    names.say()
    if not lengths:
        raise UserError(f"{', '.join(map(str, options.data))}: none of the sampled documents can be used.")
    all_lengths = np.concatenate(lengths).astype(np.int64)
    sampled = int(all_lengths.sum())
    factor = max(1.0, total / disk_bytes)
    tokens = round(sampled * factor)
    tokens = min(tokens, options.max_tokens or tokens)
    rows = splice(all_lengths, options.max_length, options.rows_by)
    # A few documents leave their last row empty, which says nothing of a large corpus; one document per row fills none.
    enough = sampled > 64 * options.max_length or options.documents_per_row
    row = sampled / len(rows.ends) if enough else options.max_length  # tokens
    workers = options.workers or available_cores()
    around = AROUND_ENCODING[choice.backend]
    return {
        "files": len({chunk.path for chunk in chunks}),
        "input_bytes": total,
        "sample_documents": len(all_lengths),
        "sample_bytes": text_bytes,
        "backend": choice.backend,
        "tokens": tokens,
        "max_length": options.max_length,
        "rows": math.ceil(tokens / row),
        "output_bytes": round(tokens * BYTES_PER_TOKEN + len(all_lengths) * factor * 24),
        "working_bytes": round(sampled * factor * np.dtype(ids_type(tokenizer.size)).itemsize),
        "workers": workers,
        "seconds": STARTING_SECONDS + seconds * factor * (1 + around) / workers,
        "categories": {name: count / sampled for name, count in categories.most_common()},
    }
