"""Whatever the documents, lengths, bins and splice: every token that was read is written once, or counted as
rejected.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.packed import PackedDataset
from llmforge.dataset.packing import SPLICES
from llmforge.dataset.prepare import prepare_data
from llmforge.tokenizer import load

from .conftest import write_jsonl

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.sampled_from(
    ["", "<|endoftext|>", "<s>", "公园 " * 30, "a" * 200, "\x00\x01", " \n\t ", "👩‍👩‍👧", "é"]
)
RECORD = st.fixed_dictionaries(
    {"target": TEXT}, optional={"source": TEXT, "category": st.sampled_from("abc")}
)


@given(
    records=st.lists(RECORD, min_size=1, max_size=25),
    max_length=st.integers(2, 70),
    bins=st.integers(1, 5),
    packing_of=st.tuples(st.sampled_from(SPLICES), st.just(0)) | st.just((SPLICES[0], 1)),
    llama=st.booleans(),
    holdout=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_is_lost(
    byte_level: Path,
    llama_like: Path,
    records: list[dict[str, str]],
    max_length: int,
    bins: int,
    packing_of: tuple[str, int],
    llama: bool,
    holdout: float,
) -> None:
    packing, documents_per_row = packing_of
    directory = llama_like if llama else byte_level
    tokenizer = load(directory)
    wanted: Counter[tuple[int, ...]] = Counter()
    good = [record for record in records if record["target"]]
    for record in good:
        ids, _ = tokenizer.encode([record.get("source", "") + record["target"]])
        head = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        wanted[(*head, *ids.tolist(), tokenizer.eos_id)] += 1
    with tempfile.TemporaryDirectory() as scratch:
        write_jsonl(Path(scratch) / "in" / "x.jsonl", [*records, {"target": "at least one"}])
        ids, _ = tokenizer.encode(["at least one"])
        wanted[
            (*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), *ids.tolist(), tokenizer.eos_id)
        ] += 1
        options = PrepareOptions(
            [Path(scratch) / "in"], directory, Path(scratch) / "out",
            max_length=max_length, bins=bins, packing=packing, documents_per_row=documents_per_row,
            holdout=holdout, max_rejected=1.0, workers=1,
        )  # fmt: skip
        finished = prepare_data(options)
        ledger = finished.manifest.metrics["ledger"]
        _check_ledger(ledger, len(records) + 1, sum(len(ids) * n for ids, n in wanted.items()))
        dataset = PackedDataset([finished.output])
        rows = dataset.rows(range(len(dataset)))
    written = Counter(int(i) for row in rows for i in row.input_ids)
    for row in rows:
        assert 0 < len(row.input_ids) == len(row.labels) == row.seq_lengths.sum() <= max_length
        assert (row.labels[row.labels != -100] == row.input_ids[row.labels != -100]).all()
        first = np.cumsum(row.seq_lengths) - row.seq_lengths
        assert len(row.seq_lengths) == 1 or not documents_per_row
        assert (np.delete(row.labels, first) != -100).any(), "a row in which nothing can be trained"
        assert len(row.seq_categories) == len(row.seq_bytes) == len(row.seq_lengths)
    everything = Counter(i for ids, n in wanted.items() for i in ids for _ in range(n))
    assert sum(written.values()) == ledger["written"]["tokens"]
    assert not written - everything
    if ledger["rejected"]["tokens"] == 0:
        assert written == everything
        assert dataset.bytes == sum(len(r["target"].encode()) for r in good) + len(b"at least one") or any(
            record.get("source") for record in good
        )


def _check_ledger(ledger: dict[str, Any], documents: int, tokens: int) -> None:
    assert ledger["read"] == {"documents": documents, "tokens": tokens}
    for counts in [ledger, *ledger["categories"].values()]:
        for key in ("documents", "tokens"):
            assert counts["read"][key] == counts["written"][key] + counts["rejected"][key]
            assert counts["rejected"][key] == sum(one[key] for one in counts["rejected"]["reasons"].values())
    assert json.loads(json.dumps(ledger)) == ledger
