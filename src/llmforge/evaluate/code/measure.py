"""pass@k of one model on problems whose tests its programs must pass."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from llmforge.evaluate.code.problems import CodeTask, Problem
from llmforge.evaluate.code.sandbox import Ran, Sandbox
from llmforge.evaluate.generation import check_positions, continue_ids, text_after
from llmforge.evaluate.models import Loaded
from llmforge.evaluate.options import CodeOptions, SamplingOptions
from llmforge.evaluate.streaming import visible

ORDERS = (1, 10, 100)


def measure_code(
    loaded: Loaded, task: CodeTask, options: CodeOptions, batch_tokens: int, advance: Callable[..., None]
) -> dict[str, Any]:
    """`pass@k` for k = 1, 10, 100 up to the number of samples, each with `value` and `stderr` (over problems; None of one
    problem); `right` has for each problem how many of its samples passed, and `outcomes` how programs ended.
    """
    completions = complete(loaded, task.problems, options, batch_tokens, advance)
    ran = run_all(Sandbox(options.code_seconds), task.problems, completions)
    right = [sum(one.passed for one in of_problem) for of_problem in ran]
    outcomes = [one.outcome for of_problem in ran for one in of_problem]
    samples = options.code_samples
    return {
        "code": task.kind,
        "shots": task.shots,
        "problems": len(task.problems),
        "samples": samples,
        **{
            f"pass@{k}": _mean([pass_at(k, samples, count) for count in right])
            for k in ORDERS
            if k <= samples
        },
        "outcomes": {name: outcomes.count(name) for name in sorted(set(outcomes))},
        "right": {problem.name: count for problem, count in zip(task.problems, right, strict=True)},
    }


def pass_at(k: int, samples: int, right: int) -> float:
    """The unbiased estimate of the probability that one of k samples is right, from `right` of `samples`:
    1 - C(samples - right, k) / C(samples, k), as a product (arXiv 2107.03374, equation 1 and figure 3).
    """
    if samples - right < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(samples - right + 1, samples + 1)))


def complete(
    loaded: Loaded,
    problems: Sequence[Problem],
    options: CodeOptions,
    batch_tokens: int,
    advance: Callable[..., None],
) -> list[list[str]]:
    """`code_samples` continuations of each problem. Sample j of problem i has the seed `seed + i * code_samples + j`."""
    sampling = SamplingOptions(
        max_new_tokens=options.code_tokens,
        temperature=options.heat(),
        top_p=options.code_top_p,
        stop=list(problems[0].stop),
    )
    flat, offsets = loaded.tokenizer.encode([problem.prompt for problem in problems])
    ids = [[*loaded.start_ids, *flat[offsets[i] : offsets[i + 1]].tolist()] for i in range(len(problems))]
    for problem, one in zip(problems, ids, strict=True):
        check_positions(loaded, len(one), sampling.max_new_tokens, f"{problem.place}: the prompt")
    count = options.code_samples
    wanted = [(i, j) for i in sorted(range(len(ids)), key=lambda i: -len(ids[i])) for j in range(count)]
    found: list[list[str]] = [[""] * count for _ in problems]
    while wanted:
        size = max(1, batch_tokens // (len(ids[wanted[0][0]]) + sampling.max_new_tokens))
        batch, wanted = wanted[:size], wanted[size:]
        seeds = [options.code_seed + i * count + j for i, j in batch]
        made = continue_ids(loaded, [ids[i] for i, _ in batch], sampling, seeds)
        for (i, j), new in zip(batch, made, strict=True):
            found[i][j] = visible(text_after(loaded, ids[i], new), sampling.stop)
        advance(len(batch))
    return found


def run_all(
    sandbox: Sandbox, problems: Sequence[Problem], completions: Sequence[Sequence[str]]
) -> list[list[Ran]]:
    """Runs every completion with the tests of its problem; equal ones of a problem once."""
    programs = [
        [problem.program(text) for text in texts]
        for problem, texts in zip(problems, completions, strict=True)
    ]
    distinct = list(dict.fromkeys(program for of_problem in programs for program in of_problem))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ran = dict(zip(distinct, pool.map(sandbox.run, distinct), strict=True))
    return [[ran[program] for program in of_problem] for of_problem in programs]


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    """The mean over problems and its standard error."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return {"value": mean, "stderr": None}
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return {"value": mean, "stderr": math.sqrt(spread / len(values))}
