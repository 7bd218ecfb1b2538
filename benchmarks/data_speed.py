"""How fast a corpus becomes a dataset: prepare-data beside other ways, on the same files and cores in one
run.

    python benchmarks/data_speed.py [--share 0.1] [--tokenizer mistral] [--only llmforge,datatrove] [--long]
    [--megabytes 1000]

The corpus: 60 MB of Chinese verse, 24 MB of English technical text and 30 MB of Python (tools/real_inputs.py
fetches them); with --long 12 MB of each, joined to documents of 1 MB; with --megabytes so much in the same proportions, the
same texts again where there are no more. Each way runs in a process of its own, imports not counted for the peers and counted
for llmforge, on all the cores that this process may use (`taskset` limits them):

    llmforge        the command `llmforge prepare-data`: jsonl in, spliced Arrow out, start-up and all
    encode_batch    `tokenizers.Tokenizer.encode_batch_fast` alone, texts in memory before, ids thrown away
    gigatoken       gigatoken alone, texts in memory before, joined to 2 MB each: what llmforge could reach at best
    datasets.map    load_dataset, then map with a transformers tokenizer and a loop that packs rows, as the
                    language modeling examples of transformers do, one process per core
    datasets.map*   the same with encode_batch_fast instead: ids alone, nothing that is not needed
    datatrove       its JsonlReader and DocumentTokenizer, one task per core
    TRL             pack_dataset("bfd_split") alone, on documents that were tokenized before

`--share` gives the peers that share of the documents, evenly drawn; rates are per second, so they stay
comparable. `--repeat` goes through all ways that many times and takes the fastest of each. datatrove and TRL are left out where they are not installed. Rates are of UTF-8 text. The rate per
second of computing is for machines that are not idle: it does not count the time in which others had the
cores.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
CORPUS = {"poetry": 60, "kernel": 24, "stdlib": 30}
MAX_LENGTH, LONG_BYTES, LONG_MEGABYTES = 4096, 1_000_000, 12
PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 10  # seconds for workers to end: on a busy machine they are slow to
Measure = tuple[float, float, int, int]  # seconds, seconds of all cores together, bytes of text, tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument(
        "--tokenizer", default="mistral", help="a name of tools/real_inputs.py, or a directory"
    )
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--megabytes", type=float, help="of the corpus")
    parser.add_argument("--only", default=",".join(WAYS))
    parser.add_argument("--way", help=argparse.SUPPRESS)  # the process of one way
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        # Whatever outlives the process that started it becomes our child, so that its time can be had.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        print(json.dumps(WAYS[options.way](options.work)))
        return
    with tempfile.TemporaryDirectory(prefix="data-speed-") as directory:
        work = Path(directory)
        prepare_work(work, options.tokenizer, options.share, options.long, options.megabytes)
        found: dict[str, Measure] = {}
        for way in options.only.split(",") * options.repeat:
            command = [sys.executable, __file__, "--way", way, "--work", str(work)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{way}: left out ({(done.stderr.strip().splitlines() or ['?'])[-1]})", file=sys.stderr)
                continue
            seconds, cpu, size, tokens = json.loads(done.stdout.splitlines()[-1])
            print(f"{way}: {seconds:.2f} s, {cpu:.2f} s of all cores together", file=sys.stderr)
            best = found.get(way, (seconds, cpu))
            found[way] = (min(seconds, best[0]), min(cpu, best[1]), size, tokens)
    print(table(found, options.tokenizer, options.share))


def table(found: dict[str, Measure], tokenizer: str, share: float) -> str:
    """The result in Markdown."""
    rates = {way: size / seconds for way, (seconds, _, size, _) in found.items()}
    work = {way: size / cpu for way, (_, cpu, size, _) in found.items() if cpu}
    lines = [
        f"{cores()} cores, tokenizer {tokenizer}, rows of {MAX_LENGTH:,} tokens, peers on {share:.0%} of the documents",
        "",
        "| | MB | seconds | MB/s | tokens/s | llmforge is | MB per core-second | llmforge is |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for way, (seconds, _, size, tokens) in found.items():
        times = f"{rates['llmforge'] / rates[way]:.1f} x"
        computing = f"{work[way] / 1e6:.2f} | {work['llmforge'] / work[way]:.1f} x" if way in work else "|"
        lines.append(
            f"| {way} | {size / 1e6:.1f} | {seconds:.1f} | {rates[way] / 1e6:.1f} | {tokens / seconds:,.0f} | {times} | "
            f"{computing} |"
        )
    return "\n".join(lines)


def clock() -> tuple[float, float]:
    """Seconds passed, and seconds that this process and all that it started computed."""
    # Pools of workers end a moment after the work, and their time counts once they were waited for; what is
    # still there then is a helper that ends with this process and computes nothing.
    until = time.monotonic() + PATIENCE
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used)


def since(began: tuple[float, float]) -> tuple[float, float]:
    passed = time.perf_counter()
    return passed - began[0], clock()[1] - began[1]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def prepare_work(work: Path, tokenizer: str, share: float, long: bool, megabytes: float | None) -> None:
    """The corpus, the peers' share of it in one file per core, and the tokenizer as a tokenizer.json."""
    from real_inputs import fetch

    from llmforge.tokenizer import load

    (work / "tokenizer").mkdir()
    loaded = load(Path(tokenizer) if Path(tokenizer).is_dir() else fetch(tokenizer))
    eos = loaded.pieces()[loaded.eos_id] if loaded.eos_id is not None else "<|endoftext|>"
    definition = dict(loaded.definition.json)
    if loaded.eos_id is None:  # GPT-2's bare files do not say that this piece is the end of a text
        end = {"id": loaded.pieces().index(eos), "content": eos, "special": True, "single_word": False}
        end |= {"lstrip": False, "rstrip": False, "normalized": False}
        definition["added_tokens"] = [*definition["added_tokens"], end]
    text = json.dumps(definition, ensure_ascii=False)
    (work / "tokenizer/tokenizer.json").write_text(text, encoding="utf-8")
    (work / "tokenizer/tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    (work / "peers").mkdir()
    peers = [(work / f"peers/{i}.jsonl").open("w", encoding="utf-8") for i in range(cores())]
    written, sizes = 0, dict.fromkeys(CORPUS, LONG_MEGABYTES) if long else CORPUS
    scale = megabytes / sum(sizes.values()) if megabytes else 1
    for name, wanted in sizes.items():
        (work / "corpus" / name).mkdir(parents=True)
        size, taken = 0, 0.0
        with (work / "corpus" / name / "x.jsonl").open("w", encoding="utf-8") as out:
            # As often as it takes; without --megabytes a text that ends early is not repeated.
            again = repeat(name) if megabytes else (name,)
            for text in chain.from_iterable(documents(one, LONG_BYTES if long else 0) for one in again):
                size += len(text.encode())
                if size > wanted * scale * 1e6:
                    break
                out.write(json.dumps({"target": text}, ensure_ascii=False) + "\n")
                taken += share
                if taken >= 1:
                    taken -= 1
                    peers[written % len(peers)].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    written += 1
    for file in peers:
        file.close()


def documents(name: str, least: int) -> Iterator[str]:
    """The texts of an input; so many of them joined that each has `least` bytes."""
    from real_inputs import fetch

    held, size = [], 0
    with (fetch(name) / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            held.append(json.loads(line)["target"])
            size += len(held[-1].encode())
            if size >= least:
                yield "\n\n".join(held)
                held, size = [], 0


def texts(work: Path) -> Iterator[str]:
    for path in sorted((work / "peers").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def text_size(work: Path) -> int:
    return sum(len(text.encode()) for text in texts(work))


def run_llmforge(work: Path) -> Measure:
    command = [sys.executable, "-m", "llmforge", "prepare-data", "--data-input-dirs", str(work / "corpus")]
    command += ["--tokenizer-dir", str(work / "tokenizer"), "--data-output-dirs", str(work / "out")]
    began = clock()
    done = subprocess.run(
        [*command, "--max-length", str(MAX_LENGTH), "--json"], check=True, capture_output=True
    )
    seconds, cpu = since(began)
    metrics = json.loads(done.stdout)["metrics"]
    shutil.rmtree(work / "out")
    return seconds, cpu, metrics["bytes"], metrics["tokens"]


def run_encode_batch(work: Path) -> Measure:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(work / "tokenizer/tokenizer.json"))
    held = list(texts(work))
    began = clock()
    tokens = 0
    for begin in range(0, len(held), 10_000):
        batch = tokenizer.encode_batch_fast(held[begin : begin + 10_000], add_special_tokens=False)
        tokens += sum(len(one.ids) for one in batch)
    return *since(began), text_size(work), tokens


def run_gigatoken(work: Path) -> Measure:
    import gigatoken
    from gigatoken.gigatoken_rs import BytesSource, PadTruncate

    definition = (work / "tokenizer/tokenizer.json").read_text(encoding="utf-8")
    backend = gigatoken.Tokenizer.from_json(definition).backend
    portions, held, size = [], [], 0
    for text in texts(work):
        held.append(text.encode())
        size += len(held[-1])
        if size >= 2 << 20:
            portions.append(b"\n".join(held))
            held, size = [], 0
    portions.append(b"\n".join(held))
    began = clock()
    tokens = 0
    for begin in range(0, len(portions), 4 * cores()):
        source = BytesSource(portions[begin : begin + 4 * cores()])
        tokens += int(backend.encode_batch_padded(source, PadTruncate(0), parallel=True)[1].sum())
    return *since(began), text_size(work), tokens


def run_datasets_map(work: Path) -> Measure:
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer/tokenizer.json"), model_max_length=1 << 40
    )
    return map_and_pack(work, lambda batch: tokenizer(batch["text"]))


def run_lean_datasets_map(work: Path) -> Measure:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(work / "tokenizer/tokenizer.json"))
    return map_and_pack(
        work, lambda batch: {"input_ids": [one.ids for one in tokenizer.encode_batch_fast(batch["text"])]}
    )


def map_and_pack(work: Path, encode: Callable[[dict[str, list[str]]], Any]) -> Measure:
    import datasets

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets.disable_progress_bars()

    def pack(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        rows = {}
        for name, lists in batch.items():
            stream = list(chain.from_iterable(lists))
            rows[name] = [stream[i : i + MAX_LENGTH] for i in range(0, len(stream), MAX_LENGTH)]
        rows["labels"] = [list(row) for row in rows["input_ids"]]
        return rows

    files = [str(path) for path in sorted((work / "peers").glob("*.jsonl"))]
    began = clock()
    data = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(work / "cache"))
    data = data.map(encode, batched=True, remove_columns=["text"], num_proc=cores())
    rows = data.map(pack, batched=True, num_proc=cores())
    rows.save_to_disk(str(work / "map"))
    seconds, cpu = since(began)
    tokens = sum(len(row["input_ids"]) for row in rows)
    shutil.rmtree(work / "cache")
    shutil.rmtree(work / "map")
    return seconds, cpu, text_size(work), tokens


def run_datatrove(work: Path) -> Measure:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer = work / "tokenizer/tokenizer.json"
    began = clock()
    steps = [
        JsonlReader(str(work / "peers")),
        DocumentTokenizer(str(work / "datatrove"), str(tokenizer), save_final_metadata=False),
    ]
    LocalPipelineExecutor(steps, tasks=cores(), workers=cores(), logging_dir=str(work / "logs")).run()
    seconds, _ = since(began)
    width = 2 if len(json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]) <= 65536 else 4
    tokens = sum(file.stat().st_size // width for file in (work / "datatrove").rglob("*.ds"))
    shutil.rmtree(work / "datatrove")
    shutil.rmtree(work / "logs")
    return seconds, 0.0, text_size(work), tokens  # its workers' time cannot be had from here


def run_trl(work: Path) -> Measure:
    import datasets
    import tokenizers
    from trl import pack_dataset

    datasets.disable_progress_bars()
    tokenizer = tokenizers.Tokenizer.from_file(str(work / "tokenizer/tokenizer.json"))
    ids = [one.ids for one in tokenizer.encode_batch_fast(list(texts(work)))]
    datasets.Dataset.from_dict({"input_ids": ids}).save_to_disk(str(work / "tokenized"))
    data = datasets.load_from_disk(str(work / "tokenized"))
    began = clock()
    pack_dataset(data, MAX_LENGTH, "bfd_split", {"num_proc": cores()}).save_to_disk(str(work / "trl"))
    measured = since(began)
    shutil.rmtree(work / "tokenized")
    shutil.rmtree(work / "trl")
    return *measured, text_size(work), sum(map(len, ids))


WAYS: dict[str, Callable[[Path], Measure]] = {
    "llmforge": run_llmforge,
    "encode_batch": run_encode_batch,
    "gigatoken": run_gigatoken,
    "datasets.map": run_datasets_map,
    "datasets.map*": run_lean_datasets_map,
    "datatrove": run_datatrove,
    "TRL": run_trl,
}

if __name__ == "__main__":
    main()
