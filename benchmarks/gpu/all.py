"""The parts of all.sh, one after the other, and the table of what they found."""

import argparse
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import results

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
MINUTES, ENDING = 9, 15  # the seconds that ending takes
MFU = (
    "MFU: model FLOPs per second / the data sheet's dense peak in bf16. Model FLOPs of a token: 6 per weight of the layers and "
    "the head (the embedding's lookup is none), and 6 x heads x (key width + value width) per visible key and layer; "
    "recomputation does not count."
)


@dataclass(frozen=True)
class Part:
    """A command with the seconds it may take; `seconds_word` is the option that tells it as well."""

    name: str
    seconds: float
    command: list[str]
    seconds_word: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def parts(tiny: bool) -> list[Part]:
    """In order of worth, with seconds of nine minutes."""
    python, small = sys.executable, ["--tiny"] if tiny else []
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "record_tests", "-m", "gpu"]
    place = {"LLMFORGE_GPU_TESTS": "cpu"} if tiny else {}
    colossalai = {"PYTHONPATH": os.environ.get("GPU_COLOSSALAI", "")}
    training = [python, str(HERE / "training.py"), *small]
    found = [
        # Several at a time: most of the time is the compiler's, on the CPU.
        Part(
            "tests",
            110,
            [*tests, *([] if tiny else ["-n", "4"]), "tests/gpu/test_native.py"],
            environment=place,
        ),
        Part("training-69104", 150, [*training, "--vocabulary", "69104"], "--seconds"),
        Part(
            "tests-colossalai",
            60,
            [*tests, "tests/gpu/test_colossalai.py"],
            environment={**place, **colossalai},
        ),
        Part("commands", 90, [python, str(HERE / "commands.py"), *small], "--seconds"),
        Part("training-128000", 75, [*training, "--vocabulary", "128000", "--first", "4"], "--seconds"),
        Part(
            "colossalai",
            60,
            [python, str(HERE / "colossal.py"), *(["--rehearse"] if tiny else [])],
            environment=colossalai,
        ),
    ]
    experiment = ROOT / "experiments/gpu.sh"
    if experiment.is_file():
        found.append(Part("experiment", 60 * MINUTES, ["bash", str(experiment), *small], "--seconds"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all; more for a slow rehearsal")
    parser.add_argument("output", nargs="?", type=Path, default=Path("gpu-results"))
    asked = parser.parse_args()
    output = asked.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    target = output / "results.jsonl"
    target.unlink(missing_ok=True)
    os.environ["RESULTS"] = str(target)
    ends = float(os.environ.get("GPU_BEGAN", time.time())) + 60 * asked.minutes - ENDING
    for part in parts(asked.tiny):
        began, left = time.time(), min(part.seconds * asked.minutes / MINUTES, ends - time.time())
        if left < 5:
            results.write("all", part.name, failed="no time was left")
            continue
        # A part that divides its time starts late and ends by itself before it is stopped.
        told = [part.seconds_word, str(max(1, int(left - 15)))] if part.seconds_word else []
        with (output / f"{part.name}.log").open("w") as log:
            environment = {**part.environment, "RESULTS_PART": part.name}
            failed = results.run([*part.command, *told], left, log, **environment)
        results.write(
            "all", part.name, seconds=round(time.time() - began, 1), **({"failed": failed} if failed else {})
        )
        (output / "table.md").write_text(table(results.read(target)), encoding="utf-8")
    print((output / "table.md").read_text(encoding="utf-8"))


def table(found: list[dict[str, Any]]) -> str:
    """All results in Markdown."""
    devices = sorted({one["device"] for one in found if "device" in one})
    lines = [f"Device: {', '.join(devices) or 'unknown'}", "", "| part | result | |", "|---|---|---|"]
    for one in found:
        lines.append(f"| {one['part']} | {one['name']} | {shown(one)} |")
    return "\n".join([*lines, "", MFU, ""])


def shown(one: dict[str, Any]) -> str:
    """The figures of a result in a line."""
    if "failed" in one:
        said = " ".join(str(one["failed"]).split()).replace("|", "/")
        return f"failed: {said[:200]}" + (f" ({one['seconds']:.0f} s)" if "seconds" in one else "")
    if "outcome" in one:
        reason = "" if one["outcome"] == "passed" else one.get("reason", "")
        return f"{one['outcome']} {' '.join(str(reason).split())[-160:]}".replace("|", "/")
    words = []
    if "tokens_per_second" in one:
        words.append(f"{one['tokens_per_second']:,.0f} tokens/s")
    if one.get("mfu"):
        words.append(f"{one['mfu']:.1%} MFU")
    if one.get("peak_bytes"):
        words.append(f"peak {one['peak_bytes'] / 1e9:.2f} GB")
    words += [f"{name} {size / 1e9:.2f} GB" for name, size in one.get("memory", {}).items()]
    if "first_loss" in one:
        words.append(f"first loss {one['first_loss']:.4f}")
    if "seconds" in one and "mfu" not in one:
        words.append(f"{one['seconds']:.1f} s")
    if "shortest_seconds" in one:
        words.append(f"{one['shortest_seconds']:.1f} s of it start-up")
    return ", ".join(words)


if __name__ == "__main__":
    main()
