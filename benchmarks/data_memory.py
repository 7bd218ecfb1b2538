"""Peak memory of prepare-data on 100 MB and on 1 GB: it should not grow with the corpus.

    python benchmarks/data_memory.py [--megabytes 100,1000] [--tokenizer mistral]

The corpora are the texts of data_speed.py, repeated. Memory is the proportional set size (PSS) of the command
and all of its workers together, looked at every 50 ms; a page that several processes share counts once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_speed import CORPUS, MAX_LENGTH, cores

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", default="100,1000")
    parser.add_argument("--tokenizer", default="mistral", help="a name of tools/real_inputs.py")
    options = parser.parse_args()
    print(f"{cores()} workers\n\n| corpus | peak memory | seconds |\n|---:|---:|---:|")
    first = 0.0
    for megabytes in map(int, options.megabytes.split(",")):
        with tempfile.TemporaryDirectory(prefix="data-memory-") as directory:
            size = write_corpus(Path(directory) / "corpus", megabytes)
            peak, seconds = peak_memory(Path(directory), options.tokenizer)
        first = first or peak
        print(
            f"| {size / 1e6:,.0f} MB | {peak / 1e6:,.0f} MB ({peak / first:.2f} x) | {seconds:.0f} |",
            flush=True,
        )


def write_corpus(directory: Path, megabytes: int) -> int:
    """Repeats the texts up to `megabytes` in all, in their proportions; returns the bytes written."""
    from real_inputs import fetch

    directory.mkdir()
    share = megabytes / sum(CORPUS.values())
    total = 0
    for name, part in CORPUS.items():
        wanted, size = part * share * 1e6, 0
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            while size < wanted:
                with (fetch(name) / f"{name}.jsonl").open(encoding="utf-8") as file:
                    for line in file:
                        size += len(line.encode())
                        out.write(line)
                        if size >= wanted:
                            break
        total += size
    return total


def peak_memory(work: Path, tokenizer: str) -> tuple[float, float]:
    """(bytes, seconds) of one run."""
    from real_inputs import fetch

    command = [sys.executable, "-m", "llmforge", "prepare-data", "--data-input-dirs", str(work / "corpus")]
    command += ["--tokenizer-dir", str(fetch(tokenizer)), "--data-output-dirs", str(work / "out")]
    began, peak = time.monotonic(), 0
    process = subprocess.Popen([*command, "--max-length", str(MAX_LENGTH), "--json"], stdout=subprocess.PIPE)
    while process.poll() is None:
        peak = max(peak, sum(map(proportional_size, family(process.pid))))
        time.sleep(0.05)
    assert process.returncode == 0
    assert process.stdout is not None
    print(json.loads(process.stdout.read())["metrics"]["encoder"], file=sys.stderr)
    return peak, time.monotonic() - began


def family(root: int) -> list[int]:
    """`root` and all processes below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def proportional_size(process: int) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
