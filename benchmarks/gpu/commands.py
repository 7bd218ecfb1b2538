"""Speed on one GPU of evaluate, generate (batched; in 8 and 4 bits where the command has that) and init-model --init distill.

    python benchmarks/gpu/commands.py [--layers 22 --width 2048] [--seconds 90] [--tiny]

A random LLaMA whose tokenizer is learned here from the repository's own files, which are the text as well. Each is the
installed command in a process of its own, start-up and reading the model included; the seconds of the shortest run of
the same command beside it (one document, one token) say how much that is.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results
import torch

ROOT = Path(__file__).parents[2]
LLMFORGE = (sys.executable, "-m", "llmforge")
END = "<|endoftext|>"


def texts() -> list[str]:
    files = [
        f for kind in ("*.md", "*.py") for folder in ("docs", "src") for f in (ROOT / folder).rglob(kind)
    ]
    return [file.read_text(encoding="utf-8") for file in sorted(files)]


def make_inputs(work: Path, asked: argparse.Namespace, device: str) -> None:
    """The model, its tokenizer, documents, prompts, and an extended tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=asked.pieces, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts()[::2], trainer)
    model = work / "model"
    with torch.device(device):
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=bpe.get_vocab_size(),
                hidden_size=asked.width,
                intermediate_size=asked.width * 11 // 4,
                num_hidden_layers=asked.layers,
                num_attention_heads=asked.width // 64,
                num_key_value_heads=max(1, asked.width // 256),
                max_position_embeddings=4096,
                tie_word_embeddings=False,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    made.to(torch.bfloat16).save_pretrained(model)
    bpe.save(str(model / "tokenizer.json"))
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    (model / "tokenizer_config.json").write_text(json.dumps(stated))
    documents = [{"text": text[: asked.characters]} for text in texts()]
    lines(work / "documents.jsonl", documents)
    lines(work / "one.jsonl", documents[:1])
    lines(work / "prompts.jsonl", [{"prompt": d["text"][:400]} for d in documents[: asked.prompts]])
    lines(work / "prompt.jsonl", [{"prompt": documents[0]["text"][:400]}])
    learn = [
        "learn-pieces",
        "--tokenizer",
        model,
        "--num-pieces",
        asked.new,
        "--output",
        work / "pieces.jsonl",
    ]
    call([*learn, "--data", work / "documents.jsonl"])
    extend = ["init-tokenizer", "--tokenizer", model, "--pieces", work / "pieces.jsonl"]
    call([*extend, "--output", work / "extended"])


def lines(file: Path, records: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def call(words: list[object], seconds: float = 600) -> tuple[float, str]:
    """(seconds, what it printed); raises with the last line of its errors."""
    began = time.perf_counter()
    done = subprocess.run(
        [*LLMFORGE, *map(str, words)], capture_output=True, text=True, timeout=max(1.0, seconds)
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["?"])[-1])
    return time.perf_counter() - began, done.stdout


def quantizations() -> dict[str, list[str]]:
    """The words that have `generate` compute in 8 and 4 bits, where this version has such an option."""
    shown = re.sub(r"\s+", " ", call(["generate", "--help"])[1])
    found: dict[str, list[str]] = {}
    for bits in ("int8", "int4"):
        if option := re.search(rf"(--[a-z-]+) \[[^\]]*\b{bits}\b", shown):
            found[bits] = [option.group(1), bits]
        elif f"--{bits}" in shown:
            found[bits] = [f"--{bits}"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"layers": 22, "width": 2048, "pieces": 20_000, "new": 1000, "prompts": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--characters", type=int, default=8000, help="of each document")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each prompt")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers of width 64, on a CPU")
    asked = parser.parse_args()
    if asked.tiny:
        tiny = {
            "layers": 2,
            "width": 64,
            "pieces": 600,
            "new": 20,
            "prompts": 4,
            "characters": 300,
            "tokens": 4,
        }
        vars(asked).update(tiny)
    ends = time.monotonic() + asked.seconds
    device = "cuda" if torch.cuda.is_available() and not asked.tiny else "cpu"
    dtype = ["--dtype", "bfloat16" if device == "cuda" else "float32"]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        work = Path(directory)
        make_inputs(work, asked, device)
        evaluate = ["evaluate", "--model", work / "model", *dtype, "--json", "--data"]
        generate = ["generate", "--model", work / "model", "--batch-tokens", 65_536, "--prompts"]
        new = asked.prompts * asked.tokens
        distill = [
            "init-model",
            "--model",
            work / "model",
            "--tokenizer",
            work / "extended",
            "--init",
            "distill",
        ]
        distill += [
            "--distill-tokens",
            2_000_000,
            "--data",
            work / "documents.jsonl",
            "--output",
            work / "resized",
        ]
        made: dict[str, tuple[list[object], list[object], int]] = {
            # label: the run, the shortest one, new tokens of the run where they are known
            "evaluate": ([*evaluate, work / "documents.jsonl"], [*evaluate, work / "one.jsonl"], 0),
            "init-model --init distill": (distill, [], 0),
        }
        for bits, words in {"": [], **quantizations()}.items():
            long = ["--max-new-tokens", asked.tokens, *dtype, *words]
            short = ["--max-new-tokens", 1, *dtype, *words]
            made[f"generate, {asked.prompts} prompts{', ' + bits if bits else ''}"] = (
                [*generate, work / "prompts.jsonl", *long],
                [*generate, work / "prompt.jsonl", *short],
                new,
            )
        size = len((work / "documents.jsonl").read_bytes())
        for label, (run, shortest, tokens) in made.items():
            try:
                base = call(shortest, ends - time.monotonic())[0] if shortest else 0.0
                seconds, _ = call(run, ends - time.monotonic())
            except Exception as error:  # one that fails does not cost the others their results
                results.write("commands", label, failed=f"{type(error).__name__}: {error}"[:300])
                print(f"{label:36} failed: {error}"[:200], flush=True)
                continue
            figures: dict[str, object] = {"seconds": seconds, "shortest_seconds": base, "bytes": size}
            if tokens and seconds > base:
                figures["tokens_per_second"] = tokens / (seconds - base)
            results.write("commands", label, **figures)
            print(f"{label:36} {seconds:8.1f} s, of which {base:.1f} s start-up", flush=True)


if __name__ == "__main__":
    main()
