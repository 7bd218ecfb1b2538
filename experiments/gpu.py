"""Arms on SmolLM2-135M on one GPU: what gpu.sh runs."""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments import run
from experiments.analysis import families, mean_bits, weights
from experiments.arms import ARMS, Arm, all_arms, recipe_of
from experiments.bases import BASES, MIX, Base, make_base
from experiments.data import CHINESE, HELD, HOME, fetch, make
from llmforge.report.markdown import table

ROOT, INPUTS = Path(__file__).parents[1], Path(__file__).parent / "inputs"
MODEL = "SmolLM2-135M"
SHARED = f"vocabularies{BASES[MODEL].suffix}"  # what run.prepare_texts makes
ORDER = ("un-grown", "grown-5000", "distill", "colossal-llama")  # of worth
SECONDS, ENDING = 530, 20  # of which measuring an arm takes ENDING
MEGABYTES = 16  # of the English of a category
DOCUMENTS, CHARACTERS = 96, 600  # measured of each held-out set
TINY = Base(hidden=64, layers=2, heads=2, intermediate=128, rows=0, steps=0, learning_rate=0)


def prepare() -> None:
    """Fills INPUTS with the model, the texts, and what llmforge makes of them before an arm starts: it needs no GPU."""
    data = make()
    for name in HELD:
        for folder in ("train", "held"):
            target = HOME / "data" / folder / f"{name}.jsonl"
            if name not in CHINESE:
                kept = target.read_bytes()[: MEGABYTES * 2**20]
                target.write_bytes(kept[: kept.rindex(b"\n") + 1])
    for pieces in sorted({arm.pieces for arm in all_arms(ARMS / "gpu").values()}):
        run.prepare_texts(BASES[MODEL], pieces)
    for folder in (data, HOME / SHARED, fetch("smollm2")):
        shutil.copytree(folder, INPUTS / folder.name, dirs_exist_ok=True)
    for name in MIX.keys() - set(HELD):
        (INPUTS / "data" / "train" / f"{name}.jsonl").unlink()
    print(INPUTS)


def tiny_texts() -> None:
    """Texts of this repository as the data of a rehearsal: Chinese its README.zh-CN.md, English its docs."""
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8").splitlines()
    english = [
        line for file in sorted((ROOT / "docs").glob("*.md")) for line in file.read_text().splitlines()
    ]
    for name in {*HELD, *MIX}:
        lines = [line for line in (chinese if name in CHINESE else english) if len(line) > 20]
        longer = [f"{number} {line}" for number in range(8) for line in lines[::2]]  # a row of each at least
        for folder, some in (("train", longer), ("held", lines[1::2])):
            target = HOME / "data" / folder / f"{name}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            records = ({"target": line, "category": name} for line in some)
            target.write_text("".join(json.dumps(record) + "\n" for record in records))
    (HOME / "data" / "data.json").write_text("{}\n")


def tiny(arm: Arm) -> Arm:
    """The arm in a rehearsal: one step for each eighth of the budget."""
    grow = arm.grow | ({"distill-tokens": 256} if "distill-tokens" in arm.grow else {})
    pieces = min(arm.pieces, 50)
    return dataclasses.replace(arm, base="tiny", pieces=pieces, budget=1.0, rows=2, grow=grow)


def in_order(arms: dict[str, Arm]) -> Iterator[Arm]:
    """The first learning rate of each recipe, then the second."""
    by_recipe = {name: [arm for arm in arms.values() if recipe_of(arm.name) == name] for name in ORDER}
    for number in range(max(map(len, by_recipe.values()))):
        yield from (own[number] for own in by_recipe.values() if number < len(own))


def run_arms(arms: list[Arm], output: Path, ends: float) -> None:
    """Runs the arms, each for its part of the time that is left of `ends` of time.monotonic(); writes results and the table
    after each.
    """
    results = output / "results.jsonl"
    for number, arm in enumerate(arms):
        now = time.monotonic()
        # Half as much again as an even part, as long as something is left for the rest.
        limit = min(ends, now + 1.5 * (ends - now) / (len(arms) - number))
        if limit - now < 2 * ENDING:
            note(arm.name, failed="no time was left")
            continue
        signal.setitimer(signal.ITIMER_REAL, limit - now)  # what cannot end by itself, such as init-model
        try:
            run.run_arm(arm, make_base(arm.base), results, limit - ENDING)
        except Exception as error:
            traceback.print_exc()
            note(arm.name, failed=f"{type(error).__name__}: {error}"[-300:])
        else:
            note(arm.name, seconds=round(time.monotonic() - now, 1))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        shutil.rmtree(run.home_of(arm) / "arms" / arm.name, ignore_errors=True)
        if results.is_file():
            (output / "table.md").write_text(curves(results), encoding="utf-8")
            print((output / "table.md").read_text(encoding="utf-8"), flush=True)


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError("the time of this arm is over.")


def note(name: str, **figures: Any) -> None:
    """Says how an arm ended, in the file RESULTS of benchmarks/gpu/all.sh as well."""
    line = json.dumps({"part": "experiment", "name": name, **figures})
    print(line, flush=True)
    if target := os.environ.get("RESULTS"):
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def curves(results: Path) -> str:
    """Chinese bits per byte of each arm at each point, in Markdown."""
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    drawn = weights({label: len(held["bits"]) for label, held in lines[0]["held"].items()})
    rows = [
        [
            arm,
            f"{points[-1]['flops']:.2e}",
            f"{points[-1]['tokens']:,}",
            *(f"{mean_bits(line, CHINESE, drawn)[0]:.4f}" for line in points),
        ]
        for family in families(lines).values()
        for arm, points in family.arms.items()
    ]
    parts = sorted({line["part"] for line in lines})
    most = max(map(len, rows))
    header = ["arm", "FLOPs", "tokens", *(f"after {part}/8" for part in parts)]
    return table(header, [row + [""] * (most - len(row)) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", action="store_true", help="fill experiments/inputs/ and end")
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    target = os.environ.get("RESULTS")  # of benchmarks/gpu/all.sh
    default = Path(target).parent / "experiment" if target else Path("experiment-results")
    parser.add_argument("output", nargs="?", type=Path, default=default)
    asked = parser.parse_args()
    if asked.prepare:
        prepare()
        return
    signal.signal(signal.SIGALRM, _too_long)
    ends = time.monotonic() + asked.seconds
    output = asked.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.jsonl").unlink(missing_ok=True)
    arms = list(in_order(all_arms(ARMS / "gpu")))
    run.DOCUMENTS, run.CHARACTERS = DOCUMENTS, CHARACTERS
    if asked.tiny:
        BASES["tiny"], run.WARMUP = TINY, 2
        run.DOCUMENTS, run.CHARACTERS = 2, 100
        tiny_texts()
        arms = [tiny(arm) for arm in arms[: len(ORDER)]]
    elif INPUTS.is_dir():
        for name in ("data", SHARED):
            shutil.copytree(INPUTS / name, HOME / name)
    run_arms(arms, output, ends)
    if not (output / "results.jsonl").is_file():
        sys.exit("no arm gave a result.")


if __name__ == "__main__":
    main()
