"""SIGKILL at any moment of any command: what is published is as if nothing had happened, and nothing stays behind."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

KILLS = int(os.environ.get("LLMFORGE_KILLS", "200"))
MEASURED = ("step", "loss", "gradient_norm", "tokens")
COUNTED = ("steps", "tokens", "skipped_steps", "final_loss", "ledger")
STEPS = (
    "learn-pieces",
    "init-tokenizer",
    "init-model",
    "prepare-data",
    "train",
    "export",
    "delta",
    "evaluate",
)


def commands(source: Path, corpus: Path, out: Path) -> dict[str, list[str]]:
    """A pipeline from `source` (a model with its tokenizer) and `corpus`, each command's output below `out`."""
    lines = {
        "learn-pieces": f"learn-pieces --source-tokenizer-dir {source} --corpus {corpus} --num-pieces 20 "
        f"--output {out}/pieces.jsonl",
        "init-tokenizer": f"init-tokenizer --source-tokenizer-dir {source} "
        f"--expand-tokens-file {out}/pieces.jsonl --target-tokenizer-dir {out}/tokenizer",
        "init-model": f"init-model --source-model-and-tokenizer-path {source} "
        f"--target-tokenizer-path {out}/tokenizer --target-model-path {out}/grown",
        "prepare-data": f"prepare-data --data-input-dirs {corpus} --tokenizer-dir {out}/tokenizer "
        f"--data-output-dir {out}/data --max-length 64 --num-spliced-dataset-bins 2 --workers 2 --holdout 0.05",
        "train": f"train --pretrained {out}/grown --dataset {out}/data --save-dir {out}/run --max-steps 60 "
        "--save-interval 7 --keep-last 2 --mixed-precision fp32",
        "export": f"export --checkpoint {out}/run --output-dir {out}/exported",
        "delta": f"delta make --base {source} --target {out}/exported --output {out}/delta",
        "evaluate": f"evaluate --model {source} {out}/exported --data a={corpus} --max-documents 20 "
        f"--output {out}/table.json",
    }
    return {name: line.split() for name, line in lines.items()}


def start(words: Sequence[str], out: Path) -> "subprocess.Popen[str]":
    again = words[0] == "train" and (out / "run" / "run.json").is_file()
    return subprocess.Popen(
        [sys.executable, "-m", "llmforge", *words, *(["--load-checkpoint", "latest"] if again else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(words: Sequence[str], out: Path) -> float:
    began = time.monotonic()
    process = start(words, out)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert "Traceback" not in printed
    return time.monotonic() - began


def contents(out: Path) -> dict[str, bytes]:
    """The bytes of every file below `out` that must not depend on kills; of manifests and metrics what they count."""
    found = {}
    for file in sorted(out.rglob("*")):
        name = file.relative_to(out).as_posix()
        if not file.is_file() or "/tensorboard/" in f"/{name}" or "/optimizer/" in f"/{name}":
            continue
        if file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = json.dumps([{key: line.get(key) for key in MEASURED} for line in lines]).encode()
        elif file.name.endswith("llmforge.json"):
            manifest = json.loads(file.read_text())
            counted = {key: manifest["metrics"].get(key) for key in COUNTED}
            found[name] = json.dumps([manifest["step"], counted], sort_keys=True).encode()
        elif file.suffix in (".safetensors", ".arrow", ".jsonl", ".model") or file.name == "tokenizer.json":
            found[name] = file.read_bytes()
    return found


def hidden(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob(".*"))


@pytest.mark.stress
def test_kills_change_nothing(tiny_model, tmp_path):
    """LLMFORGE_KILLS (200) kills over all commands, at moments drawn evenly over the command's own time."""
    corpus = tmp_path / "corpus.jsonl"
    with corpus.open("w") as file:
        for line in range(3000):
            text = f"the cat sat on the mat {line}\nand then the rat ate the hat {line % 7} 猫坐在垫子上 {line % 13}"
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    plain.mkdir()
    seconds = {name: finish(words, plain) for name, words in commands(tiny_model, corpus, plain).items()}
    expected, chance, count, rounds = contents(plain), random.Random(0), 0, 0
    while count < KILLS:
        shutil.rmtree(killed, ignore_errors=True)
        killed.mkdir()
        rounds += 1
        for name, words in commands(tiny_model, corpus, killed).items():
            for _ in range(3 if name in ("train", "prepare-data") else 1):
                process = start(words, killed)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=0.3 + chance.random() * seconds[name])
                if process.poll() is None:
                    count += 1
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            finish(words, killed)
        now = contents(killed)
        different = [name for name in expected if now.get(name) != expected[name]]
        assert not different, different
        assert set(now) == set(expected)
        assert hidden(killed) == hidden(plain)
    print(
        f"\n{count} kills in {rounds} rounds of {len(STEPS)} commands: 0 bits differ, nothing is left behind"
    )
