"""Runs arms: grows, prepares, trains and measures through llmforge, and writes a line of results.jsonl for each point.

    python -m experiments.run                   all arms of arms/ that are not done, in the order of their names
    python -m experiments.run un-grown grown-5000.init=mean      those whose names begin so, in this order

Killed and called again, it goes on: what a command has finished is recognized, training resumes from its last
checkpoint, points that are in results.jsonl are not measured again; the CPU seconds of what was killed are lost. Several
may run side by side; each takes arms that no other has. Weights and data lie in HOME (data.py), never in the repository.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from experiments.arms import MEASURED, PARTS, Arm, all_arms
from experiments.bases import BASES, ROW, Base, make_base, make_tokenizer
from experiments.commands import STOPPED, StoppedError, llmforge, locked, manifest
from experiments.data import CHINESE, ENGLISH, HELD, HOME, make, split
from experiments.flops import distillation_flops, initialization_flops, token_flops
from llmforge.embedding.options import READ_DATA
from llmforge.train.save_dir import AVERAGE, MODELING

RESULTS = Path(__file__).parent / "results.jsonl"
WARMUP = 10
DOCUMENTS, CHARACTERS = 32, 160  # measured of each held-out set, at each point


def once(output: Path, *words: object) -> None:
    """Makes `output` with a command of llmforge unless it is there; its CPU seconds are kept beside it."""
    with locked(output):
        spent = output.with_name(f"{output.name}.cpu")
        if not spent.is_file():
            seconds = llmforge(*words, "--output", output, log=output.with_name(f"{output.name}.log"))
            spent.write_text(f"{seconds:.2f}\n")


def spent_on(output: Path) -> float:
    """CPU seconds of the command that made `output`."""
    return float(output.with_name(f"{output.name}.cpu").read_text())


@dataclass(frozen=True)
class Start:
    """Where an arm starts: its model, its dataset, and what making new rows took."""

    model: Path
    data: Path
    flops: float
    cpu_seconds: float


def home_of(arm: Arm) -> Path:
    """Where everything of the arms of one base lies; a base that is trained longer is another."""
    return HOME / f"{arm.base}-{BASES[arm.base].tokens}"


def texts_of(base: Base) -> dict[str, Path]:
    """The training file of each category: no Chinese document that the base has read."""
    english = {name: make() / "train" / f"{name}.jsonl" for name in ENGLISH}
    chinese = split() / "arms" if base.chinese else make() / "train"
    return {name: chinese / f"{name}.jsonl" for name in CHINESE} | english


def prepare_texts(base: Base, pieces: int) -> tuple[Path, Path]:
    """The tokenizer with that many new pieces, and the dataset that it encodes; bases of one language share them."""
    home, texts, tokenizer = HOME / f"vocabularies{base.suffix}", texts_of(base), make_tokenizer(base)
    if pieces:
        learned, source, tokenizer = home / f"pieces-{pieces}.jsonl", tokenizer, home / f"tokenizer-{pieces}"
        chinese = [texts[name] for name in CHINESE]
        once(learned, "learn-pieces", "--tokenizer", source, "--num-pieces", pieces, "--data", *chinese)
        once(tokenizer, "init-tokenizer", "--tokenizer", source, "--pieces", learned)
    data = home / f"data-{pieces}"
    once(
        data,
        *("prepare-data", "--tokenizer", tokenizer, "--max-length", ROW, "--max-tokens", base.read),
        *("--data", *(texts[name] for name in HELD), "--bins", 1, "--workers", 1),
        *("--mix", *(f"{name}={share}" for name, share in mixture(0.2).items())),
    )
    return tokenizer, data


def prepare(arm: Arm, base: Path) -> Start:
    """The model and dataset of the arm; arms with the same vocabulary and rows share them."""
    home = home_of(arm)
    tokenizer, data = prepare_texts(BASES[arm.base], arm.pieces)
    model = untied(base, home / "untied") if arm.untie else base
    if not arm.pieces:
        return Start(model, data, 0.0, 0.0)
    words = [f"{arm.init}-{arm.head_init}", *(f"{name}={value}" for name, value in arm.grow.items())]
    kind = "untied" if arm.untie else "tied"
    source, model = model, home / "-".join([kind, str(arm.pieces), *words])
    texts = texts_of(BASES[arm.base])
    reads = {arm.init, arm.head_init} & {*READ_DATA}
    learn = ["--data", *(texts[name] for name in CHINESE)] if reads else []
    once(
        model,
        *("init-model", "--model", source, "--tokenizer", tokenizer),
        *("--init", arm.init, "--head-init", arm.head_init, *learn, *flags(arm.grow)),
    )
    rows, config = manifest(model)["outputs"]["vocabulary"], read_config(model)
    new = rows["size"] - rows["source"]
    if arm.init == "distill":
        spelled = _tokens_per_character(base, home) / _tokens_per_character(model, home)
        flops = distillation_flops(config, rows["source"], new, spelled, arm.grow)
    else:
        flops = initialization_flops(arm.init, new, config["hidden_size"], 2 if arm.untie else 1)
    return Start(model, data, flops, spent_on(model))


def _tokens_per_character(model: Path, home: Path) -> float:
    """Of the Chinese held-out sets."""
    figures = start_figures(model, home)
    return float(sum(figures[name]["tokens_per_character"] for name in CHINESE)) / len(CHINESE)


def flags(options: dict[str, Any]) -> list[object]:
    """{name: value} as words of a command."""
    return [
        word
        for name, value in options.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", value])
    ]


def untied(base: Path, target: Path) -> Path:
    """The base with a head of its own, which starts as its embedding: the same model until it is trained."""
    with locked(target):
        if not target.is_dir():
            from safetensors.torch import load_file, save_file

            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(base, partial, ignore=shutil.ignore_patterns("llmforge.json"))
            tensors = load_file(partial / "model.safetensors")
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
            save_file(tensors, partial / "model.safetensors", {"format": "pt"})
            config = {**read_config(base), "tie_word_embeddings": False}
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            partial.rename(target)
    return target


def read_config(model: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return config


def mixture(replay: float) -> dict[str, float]:
    """Shares of rows: Chinese in three equal parts, and `replay` English likewise."""
    chinese = {name: round((1 - replay) / len(CHINESE), 6) for name in CHINESE}
    return {**chinese, **{name: round(replay / len(ENGLISH), 6) for name in ENGLISH}}


def attended(data: Path, mix: dict[str, float]) -> float:
    """The sum of squared lengths of documents over the sum of lengths, of rows in the shares of `mix`."""
    from llmforge.dataset.packed import PackedDataset

    dataset = PackedDataset([data])
    squares, tokens = dict.fromkeys(mix, 0.0), dict.fromkeys(mix, 0.0)
    for row in dataset.rows(range(len(dataset))):
        for name, length in zip(row.seq_categories, row.seq_lengths.tolist(), strict=True):
            squares[name] += length**2
            tokens[name] += length
    return sum(share * squares[name] / tokens[name] for name, share in mix.items() if share) / sum(
        mix.values()
    )


@dataclass(frozen=True)
class Stage:
    """One training: `parts` of the budget, each of `steps` steps of `step_flops`."""

    model: Path
    output: Path
    trainable: str
    learning_rate: float
    parts: int
    steps: int
    step_flops: float


def stages(arm: Arm, start: Start, output: Path) -> list[Stage]:
    """The trainings of the arm; what the initialization took is taken off the budget of the last one."""
    mix = mixture(arm.replay)
    crossing = arm.train.get("cross-document-attention")
    length = float(ROW) if crossing else attended(start.data, mix)
    config = read_config(start.model)
    wanted = [("all", arm.learning_rate, PARTS - arm.first_parts)]
    if arm.first_parts and arm.first_learning_rate is not None:
        wanted.insert(0, (arm.first_trainable, arm.first_learning_rate, arm.first_parts))
    made, model = [], start.model
    for number, (trainable, rate, parts) in enumerate(wanted, 1):
        step = arm.rows * ROW * token_flops(config, config["vocab_size"], length, trainable).total
        steps = max(1, round((arm.budget - start.flops) / PARTS / step))
        made.append(Stage(model, output / f"stage-{number}", trainable, rate, parts, steps, step))
        model = output / f"stage-{number}" / MODELING
    return made


def train(arm: Arm, stage: Stage, data: Path, ends: float) -> float:
    """Trains the stage, or goes on with it; returns its CPU seconds. It stops at `ends` of time.monotonic()."""
    return llmforge(
        *("train", "--model", stage.model, "--data", data, "--output", stage.output, "--seed", arm.seed),
        *("--max-steps", stage.parts * stage.steps, "--num-epochs", 100, "--micro-batch-size", arm.rows),
        *("--learning-rate", stage.learning_rate, "--schedule", "constant", "--warmup-steps", WARMUP),
        *("--trainable", stage.trainable, "--save-interval", stage.steps, "--stopped-exit-code", STOPPED),
        *("--mix", ",".join(f"{name}={share}" for name, share in mixture(arm.replay).items())),
        *(["--load-checkpoint", "latest"] if stage.output.is_dir() else []),
        *(["--time-limit", max(1, int(ends - time.monotonic()))] if ends < inf else []),
        *flags(arm.train),
        log=stage.output.with_name(f"{stage.output.name}.log"),
    )


def measure(models: Sequence[Path], output: Path) -> list[dict[str, Any]]:
    """What `evaluate` says of each model on the held-out sets, by label."""
    held = make() / "held"
    llmforge(
        *("evaluate", "--model", *models, "--data", *(f"{name}={held / name}.jsonl" for name in HELD)),
        *("--max-documents", DOCUMENTS, "--max-characters", CHARACTERS, "--max-length", ROW),
        *("--per-document", "--output", output),
        log=output.with_suffix(".log"),
    )
    return list(json.loads(output.read_text()).values())


def start_figures(model: Path, home: Path) -> dict[str, Any]:
    """What `measure` says of a model before training; arms that start from it share it."""
    output = home / f"start-{model.parent.name}-{model.name}.json"
    with locked(output):
        return measure([model], output)[0]


def done_parts(results: Path, arm: Arm) -> set[int]:
    """The points of the arm that are in the results, from the same base."""
    if not results.is_file():
        return set()
    lines = map(json.loads, results.read_text(encoding="utf-8").splitlines())
    key = (arm.name, BASES[arm.base].tokens)
    return {line["part"] for line in lines if (line["arm"], line["base_tokens"]) == key}


def append(results: Path, lines: list[dict[str, Any]]) -> None:
    """Adds lines; each is whole or not there, also where several processes write."""
    with locked(HOME / "results"), results.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def line_of(arm: Arm, part: int, start: Start, figures: dict[str, Any], **counts: float) -> dict[str, Any]:
    """A line of the results: recipe, point, what it took, and the held-out sets."""
    held = {
        label: {
            "bits_per_byte": round(one["bits_per_byte"], 5),
            "tokens_per_character": round(one["tokens_per_character"], 4),
            "bits": [round(bits, 2) for bits in one["document_bits"]],
            "bytes": one["document_bytes"],
        }
        for label, one in figures.items()
    }
    rows = read_config(start.model)["vocab_size"]
    return {
        "arm": arm.name,
        "family": arm.family,
        "recipe": asdict(arm),
        "base_tokens": BASES[arm.base].tokens,
        "part": part,
        "rows": rows,
        **{name: round(value, 2) for name, value in counts.items()},
        "held": held,
    }


def run_arm(arm: Arm, base: Path, results: Path = RESULTS, ends: float = inf) -> None:
    """Brings the arm to its end, or as far as it comes until `ends` of time.monotonic(): what it has saved is measured."""
    missing = set(MEASURED) - done_parts(results, arm)
    if not missing:
        return
    home = home_of(arm) / "arms" / arm.name
    start = prepare(arm, base)
    plan = stages(arm, start, home)
    if 0 in missing:
        figures = start_figures(start.model, home_of(arm))
        zero = {"flops": start.flops, "cpu_seconds": start.cpu_seconds, "steps": 0, "tokens": 0}
        append(results, [line_of(arm, 0, start, figures, **zero)])
    points: list[tuple[int, Path, dict[str, float]]] = []
    part, steps, flops, seconds = 0, 0, start.flops, start.cpu_seconds
    stopped = False
    for stage in plan:
        parts, seconds_of_stage, stopped = trained(arm, stage, start.data, ends)
        for own in range(1, int(parts) + 1):
            part += 1
            steps += stage.steps
            flops += stage.steps * stage.step_flops
            seconds += seconds_of_stage / parts
            if part in missing:
                counts = {
                    "flops": flops,
                    "cpu_seconds": seconds,
                    "steps": steps,
                    "tokens": steps * arm.rows * ROW,
                }
                points.append((part, checkpoint(arm, stage, own), counts))
        if stopped:
            break
    figures_of = measure([model for _, model, _ in points], home / "points.json") if points else []
    append(
        results,
        [
            line_of(arm, part, start, figures, **counts)
            for (part, _, counts), figures in zip(points, figures_of, strict=True)
        ],
    )
    if not stopped:
        for stage in plan:  # the weights go, their measurements stay
            metrics = stage.output / "metrics.jsonl"
            metrics.rename(stage.output.with_name(f"{stage.output.name}.metrics.jsonl"))
            shutil.rmtree(stage.output)


def trained(arm: Arm, stage: Stage, data: Path, ends: float) -> tuple[float, float, bool]:
    """(parts of the stage that are trained, the CPU seconds they took, whether it was stopped before its end)."""
    spent = stage.output.with_name(f"{stage.output.name}.cpu")
    if not spent.is_file():
        try:
            seconds = train(arm, stage, data, ends)
        except StoppedError as stopped:
            steps = [int(name.name.rpartition("-")[2]) for name in stage.output.glob("epoch-*_step-*")]
            return max(steps, default=0) / stage.steps, stopped.seconds, True
        spent.write_text(f"{seconds:.2f}\n")
    return stage.parts, float(spent.read_text()), False


def checkpoint(arm: Arm, stage: Stage, part: int) -> Path:
    """The model after `part` parts of the stage; with `ema` its average."""
    measured = AVERAGE if "ema" in arm.train else MODELING
    if part == stage.parts:
        return stage.output / measured
    (found,) = stage.output.glob(f"epoch-*_step-{part * stage.steps}")
    return found / measured


def main(prefixes: Sequence[str]) -> None:
    """Runs the arms whose names begin with one of `prefixes`, all of them where there are none."""
    arms = all_arms()
    chosen = [arm for prefix in prefixes or [""] for name, arm in arms.items() if name.startswith(prefix)]
    if not chosen:
        sys.exit(f"no arm begins so; there are {', '.join(arms)}.")
    for name in dict.fromkeys(arm.name for arm in chosen):
        arm = arms[name]
        with locked(HOME / "locks" / name, wait=False) as ours:
            if ours:
                print(name, flush=True)
                run_arm(arm, make_base(arm.base))


if __name__ == "__main__":
    main(sys.argv[1:])
