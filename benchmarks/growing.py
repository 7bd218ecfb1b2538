"""Growing a model from 32,000 to 52,000 ids: time and memory, beside `cp -r` and beside transformers.

    python benchmarks/growing.py                 1.1 B parameters, and half the layers of it
    python benchmarks/growing.py --layers 4      fewer layers

The model is a LLaMA with random weights in bfloat16, untied, made shard by shard; so is its tokenizer. Claims checked:
init-model takes at most 1.5 x `cp -r` + 5 s (medians of runs that alternate: the page cache of a virtual machine makes
single ones differ by a factor of five); init-model, export and delta peak at most 600 MB above an idle Python
with numpy; and the peak does not grow with the number of layers. Peaks are the kernel's (ru_maxrss, mapped files
included). The peer is `from_pretrained` + `resize_token_embeddings` + `save_pretrained` of the transformers installed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

OLD, NEW = 32_000, 52_000
HIDDEN, MIDDLE, HEADS, GROUPS, LAYERS = 2048, 5632, 32, 4, 22
TIME_RATIO, TIME_EXTRA, MEMORY_MB, REPEATS = 1.5, 5.0, 600, 5

PEER = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
model.resize_token_embeddings(int(sys.argv[2]))
model.save_pretrained(sys.argv[3])
"""


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float
    peak_mb: float


def run(*command: object) -> Run:
    """Runs a command to its end; time and peak memory of it alone."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed:\n{said}")
    return Run(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def median(runs: list[Run]) -> Run:
    """The run of median time, with the highest peak of all."""
    middle = sorted(runs, key=lambda one: one.seconds)[len(runs) // 2]
    return replace(middle, peak_mb=max(one.peak_mb for one in runs))


def llmforge(*words: object) -> Run:
    return run(sys.executable, "-m", "llmforge", *words)


def make_tokenizer(directory: Path, size: int) -> None:
    """A byte-level BPE tokenizer of `size` random pieces; a larger one extends a smaller one."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    pieces = [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
    merges, known = [], set(pieces)
    generator = np.random.default_rng(0)
    while len(pieces) < size:
        left, right = (pieces[i] for i in generator.integers(0, min(len(pieces), 5000), 2))
        if left + right not in known and len(left + right) <= 8:
            pieces.append(left + right)
            known.add(left + right)
            merges.append([left, right])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": merges},
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def make_model(directory: Path, layers: int) -> int:
    """A LLaMA of random bfloat16 weights, a shard for every four layers; returns the number of its parameters."""
    make_tokenizer(directory, OLD)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "vocab_size": OLD,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    keys = HIDDEN // HEADS * GROUPS
    shapes = [{"model.embed_tokens.weight": (OLD, HIDDEN)}]
    for first in range(0, layers, 4):
        shard = {}
        for layer in range(first, min(first + 4, layers)):
            for name, shape in {
                "self_attn.q_proj": (HIDDEN, HIDDEN),
                "self_attn.k_proj": (keys, HIDDEN),
                "self_attn.v_proj": (keys, HIDDEN),
                "self_attn.o_proj": (HIDDEN, HIDDEN),
                "mlp.gate_proj": (MIDDLE, HIDDEN),
                "mlp.up_proj": (MIDDLE, HIDDEN),
                "mlp.down_proj": (HIDDEN, MIDDLE),
                "input_layernorm": (HIDDEN,),
                "post_attention_layernorm": (HIDDEN,),
            }.items():
                shard[f"model.layers.{layer}.{name}.weight"] = shape
        shapes.append(shard)
    shapes.append({"model.norm.weight": (HIDDEN,), "lm_head.weight": (OLD, HIDDEN)})

    # Random numbers are slower than the disk: a million of them, from another start for each tensor, are enough.
    values = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    weight_map, total = {}, 0
    for number, shard in enumerate(shapes, start=1):
        name = f"model-{number:05d}-of-{len(shapes):05d}.safetensors"
        header, end = {}, 0
        for tensor, shape in shard.items():
            size = int(np.prod(shape)) * 2
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            weight_map[tensor] = name
            end += size
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (directory / name).open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for start, shape in enumerate(shard.values()):
                left = int(np.prod(shape))
                while left:
                    block = np.roll(bits, 9973 * start)[: min(left, len(bits))]
                    file.write(block.tobytes())
                    left -= len(block)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total // 2


def measure(work: Path, layers: int, idle: float, peer: bool) -> list[str]:
    """Prints a table for one number of layers; returns the claims that do not hold."""
    source, tokenizer, grown = work / "source", work / "tokenizer", work / "grown"
    parameters = make_model(source, layers)
    make_tokenizer(tokenizer, NEW)
    copies, growths = [], []
    for _ in range(REPEATS):
        shutil.rmtree(work / "copy", ignore_errors=True)
        copies.append(run("cp", "-r", source, work / "copy"))
        shutil.rmtree(grown, ignore_errors=True)
        words = ("--source-model-and-tokenizer-path", source, "--target-tokenizer-path", tokenizer)
        growths.append(llmforge("init-model", *words, "--target-model-path", grown))
    shutil.rmtree(work / "copy")
    copied = median(copies)
    runs = {
        "cp -r": copied,
        "init-model": median(growths),
        "export": llmforge("export", "--checkpoint", grown, "--output-dir", work / "exported"),
    }
    shutil.rmtree(work / "exported")
    runs["delta make"] = llmforge(
        "delta", "make", "--base", source, "--target", grown, "--output", work / "delta"
    )
    runs["delta apply"] = llmforge(
        "delta", "apply", "--base", source, "--delta", work / "delta", "--output", work / "back"
    )
    shutil.rmtree(work / "delta")
    shutil.rmtree(work / "back")
    shutil.rmtree(grown)
    if peer:
        runs["transformers"] = run(sys.executable, "-c", PEER, source, NEW, work / "peer")
        shutil.rmtree(work / "peer")
    shutil.rmtree(source)

    print(
        f"\n{parameters / 1e9:.2f} B parameters, {layers} layers, {2 * parameters / 1e9:.2f} GB; idle Python {idle:.0f} MB\n"
    )
    print(
        "| | seconds | x cp -r | CPU seconds | peak MB | above idle MB |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, one in runs.items():
        figures = [
            f"{one.seconds:.1f}",
            f"{one.seconds / copied.seconds:.2f}",
            f"{one.cpu_seconds:.1f}",
            f"{one.peak_mb:.0f}",
            f"{one.peak_mb - idle:.0f}",
        ]
        print(f"| {name} | {' | '.join(figures)} |", flush=True)
    print()
    for name, each in {"cp -r": copies, "init-model": growths}.items():
        print(f"{name}, each run: {', '.join(f'{one.seconds:.1f}' for one in each)} s")
    ours = runs["init-model"]
    if peer:
        other = runs["transformers"]
        print(
            f"\ntransformers takes {other.seconds / ours.seconds:.1f} x the time and {other.peak_mb / ours.peak_mb:.1f} x the memory of init-model."
        )
    failed = []
    if ours.seconds > TIME_RATIO * copied.seconds + TIME_EXTRA:
        failed.append(f"{layers} layers: init-model took {ours.seconds:.1f} s, cp -r {copied.seconds:.1f} s")
    for name in ("init-model", "export", "delta make", "delta apply"):
        if runs[name].peak_mb - idle > MEMORY_MB:
            failed.append(f"{layers} layers: {name} peaks {runs[name].peak_mb - idle:.0f} MB above idle")
    PEAKS.setdefault("init-model", []).append(ours.peak_mb)
    return failed


PEAKS: dict[str, list[float]] = {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, help="where the models are made (8 GB; default: a temporary directory)"
    )
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    idle = run(sys.executable, "-c", "import numpy").peak_mb
    failed = []
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        for layers in (options.layers // 2, options.layers):
            failed += measure(Path(work) / str(layers), layers, idle, peer=layers == options.layers)
    smaller, larger = PEAKS["init-model"]
    print(f"\ninit-model peaks at {smaller:.0f} MB with half the layers and at {larger:.0f} MB with all.")
    if larger > smaller * 1.1:
        failed.append("the peak of init-model grows with the layers")
    sys.exit("\n".join(f"does not hold: {claim}" for claim in failed) or None)


if __name__ == "__main__":
    main()
