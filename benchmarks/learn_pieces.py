"""learn-pieces against its peers on Chinese verse: CPU seconds, wall seconds and peak memory, in the same run.

    python benchmarks/learn_pieces.py [--pieces 20000] [--megabytes 70] [--only NAME...]

    ours-sentencepiece   llmforge learn-pieces on a 32,000-piece sentencepiece tokenizer
    sentencepiece        sentencepiece's own BPE trainer, from scratch, with as many pieces
    ours-byte-level      llmforge learn-pieces on SmolLM2's tokenizer
    bpe-continue         bpe-continue on SmolLM2's tokenizer

Each runs in a process of its own and reads the same file, a line at a time.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tools")]
from real_inputs import fetch  # noqa: E402

NAMES = ("ours-sentencepiece", "sentencepiece", "ours-byte-level", "bpe-continue")


def write_corpus(work: Path, megabytes: float) -> None:
    """`corpus.txt`, poems of at most `megabytes`."""
    left = megabytes * 1e6
    with (
        (fetch("poetry") / "poetry.jsonl").open(encoding="utf-8") as lines,
        (work / "corpus.txt").open("w", encoding="utf-8") as plain,
    ):
        for line in lines:
            text = json.loads(line)["target"]
            left -= len(text.encode())
            if left < 0:
                break
            plain.write(text + "\n")


def run(name: str, work: Path, pieces: int) -> None:
    """One contender, in this process."""
    if name.startswith("ours"):
        from llmforge.tokenizer.learn import learn_pieces
        from llmforge.tokenizer.options import LearnPiecesOptions

        source = fetch("mistral" if name == "ours-sentencepiece" else "smollm2")
        learn_pieces(
            LearnPiecesOptions(
                tokenizer=source, data=[work / "corpus.txt"], output=work / f"{name}.jsonl", num_pieces=pieces
            )
        )
    elif name == "sentencepiece":
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            input=str(work / "corpus.txt"),
            model_prefix=str(work / "scratch"),
            model_type="bpe",
            vocab_size=pieces,
            character_coverage=0.9995,
            byte_fallback=True,
            split_digits=True,
            num_threads=os.cpu_count(),
            minloglevel=2,
        )
    else:
        from bpe_continue import continue_training
        from tokenizers import Tokenizer

        base = Tokenizer.from_file(str(fetch("smollm2") / "tokenizer.json"))
        size = base.get_vocab_size() + pieces
        grown = continue_training(base, files=[work / "corpus.txt"], vocab_size=size, show_progress=False)
        grown.save(str(work / "bpe-continue.json"))


def main() -> None:
    """Prints one line for each contender."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pieces", type=int, default=20_000)
    parser.add_argument("--megabytes", type=float, default=70)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run(options.inside[0], Path(options.inside[1]), options.pieces)
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_corpus(work, options.megabytes)
        size = (work / "corpus.txt").stat().st_size / 1e6
        print(f"{options.pieces:,} pieces from {size:.1f} MB of verse")
        for name in options.only:
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [sys.executable, __file__, "--inside", name, str(work), "--pieces", str(options.pieces)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"{name:20} {spent:7.1f} s CPU {wall:7.1f} s wall   {after.ru_maxrss / 1e6:.2f} GB at most so far",
                flush=True,
            )


if __name__ == "__main__":
    main()
