"""Tasks of lm-evaluation-harness (the package lm-eval): its questions, prompts and metrics, by llmforge's models and scoring."""

import difflib
import functools
import importlib.metadata
import itertools
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.corpus.sources import printable
from llmforge.errors import UserError
from llmforge.evaluate.options import SamplingOptions

PREFIX = "lm-eval:"
SUFFIXES = (".yaml", ".yml")


def divide(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of --tasks that name files, and the names behind `lm-eval:`."""
    named = [word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)]
    return [word for word in words if not word.startswith(PREFIX)], named


def label(name: str) -> str:
    """What the results of a task are called."""
    return PREFIX + (Path(name).stem if name.endswith(SUFFIXES) else name)


def files(names: Sequence[str]) -> list[Path]:
    """Those of the names that are files."""
    return [Path(name) for name in names if name.endswith(SUFFIXES)]


def version() -> str:
    """That of lm-eval; empty where it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        return ""


def check(names: Sequence[str]) -> None:
    """Raises `UserError` where lm-eval is missing or does not have one of the tasks; loads no data set."""
    if not names:
        return
    try:
        import lm_eval.tasks  # noqa: F401 - only whether it is there
    except ImportError:
        raise UserError(
            f"--tasks {PREFIX}{names[0]} needs lm-evaluation-harness; run: pip install 'llmforge[eval]'."
        ) from None
    for name in names:
        if name.endswith(SUFFIXES):
            if not Path(name).is_file():
                raise UserError(f"--tasks {PREFIX}{printable(name)}: there is no such file.")
            continue
        known = _manager(None).all_tasks
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(f"--tasks {PREFIX}{name}: lm-evaluation-harness has no task of that name{hint}")


def measure_harness(
    loaded: Any, name: str, shots: int | None, most: int | None, scorer: Any, advance: Callable[..., None]
) -> dict[str, Any]:
    """`rows[task][metric]` has `value` and `stderr` (None where the harness gives none), of the task and all in it.

    `shots`: None for the task's own number. `most` limits the documents of each task. Raises `UserError` where the data set
    of the task cannot be had.
    """
    import lm_eval

    for logger in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    file = Path(name).resolve() if name.endswith(SUFFIXES) else None
    task, manager = _named(file) if file else name, _manager(file and file.parent)
    try:
        results = lm_eval.simple_evaluate(
            model=_model(loaded, scorer, advance),
            tasks=[task],
            task_manager=manager,
            num_fewshot=shots,
            limit=most,
            bootstrap_iters=100,
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, LookupError, TypeError, AssertionError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"--tasks {PREFIX}{name}: lm-evaluation-harness cannot ask it ({type(error).__name__}: {said})."
        ) from error
    return {
        "harness": name,
        "version": lm_eval.__version__,
        "shots": results["n-shot"],
        "documents": {task: count["effective"] for task, count in results["n-samples"].items()},
        "rows": {one["alias"].strip(" -") or task: _metrics(one) for task, one in results["results"].items()},
    }


@functools.cache
def _manager(folder: Path | None) -> Any:
    """The tasks of `folder`; without one, those of the harness, which takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False) if folder else TaskManager()


def _named(file: Path) -> str:
    """The name that a file gives its task; the harness finds what else it names in its folder."""
    found = re.search(
        r"^task:\s*[\"']?([^\s\"']+)", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    )
    if found is None:
        raise UserError(f"--tasks {PREFIX}{printable(file)}: it names no task (a line `task: NAME`).")
    return found[1]


def _metrics(result: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """The metrics of one task; a filter that is not `none` stands behind the name."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in result.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = result.get(f"{metric}_stderr,{kept}")
        found[metric if kept == "none" else f"{metric} ({kept})"] = {
            "value": float(value),
            "stderr": float(error) if isinstance(error, (int, float)) else None,
        }
    return found


def _model(loaded: Any, scorer: Any, advance: Callable[..., None]) -> Any:
    """A model for the harness (`lm_eval.api.model.LM`)."""
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from llmforge.evaluate.generation import check_positions, continue_ids, text_after
    from llmforge.evaluate.streaming import visible
    from llmforge.evaluate.tasks.likelihood import Row
    from llmforge.weights.architecture import positions

    limit = positions(loaded.model.config)

    def place(request: Any) -> str:
        return f"{PREFIX}{request.task_name}, document {request.doc_id}: the prompt"

    class Model(LM):  # type: ignore[misc]
        @property
        def tokenizer_name(self) -> str:
            return str(loaded.tokenizer.directory)

        def loglikelihood(self, requests: Any, *_: Any, **__: Any) -> list[tuple[float, bool]]:
            pairs = _encode([request.args for request in requests])
            return self._judge(pairs, requests)

        def loglikelihood_rolling(self, requests: Any, *_: Any, **__: Any) -> list[float]:
            """Of whole texts, in windows that do not overlap."""
            longest, total = limit or 2048, []
            for request in requests:
                ids = loaded.tokenizer.encode([request.args[0]])[0].tolist()
                windows = map(
                    make_disjoint_window,
                    get_rolling_token_windows(ids, loaded.start_ids[-1], longest, context_len=1),
                )
                pairs = [(np.array(a, np.int32), np.array(b, np.int32)) for a, b in windows]
                total.append(sum(one for one, _ in self._judge(pairs, [request] * len(pairs))))
            return total

        def generate_until(self, requests: Any, *_: Any, **__: Any) -> list[str]:
            made = []
            for request in requests:
                text, asked = request.args
                stop = asked.get("until") or []
                sampling = SamplingOptions(
                    max_new_tokens=asked.get("max_gen_toks", 256),
                    temperature=asked.get("temperature", 0.0) if asked.get("do_sample") else 0.0,
                    top_p=asked.get("top_p", 1.0),
                    stop=[one for one in ([stop] if isinstance(stop, str) else stop) if one],
                )
                ids = [*loaded.tokenizer.prefix_ids, *loaded.tokenizer.encode([text])[0].tolist()]
                ids = ids or list(loaded.start_ids)
                check_positions(loaded, len(ids), sampling.max_new_tokens, place(request))
                (new,) = continue_ids(loaded, [ids], sampling)
                made.append(visible(text_after(loaded, ids, new), sampling.stop))
                advance(1)
            return made

        def _judge(self, pairs: Sequence[tuple[Any, Any]], requests: Any) -> list[tuple[float, bool]]:
            """Pairs of one prompt are options of one row; the rows of one task are a group."""
            groups: dict[str, dict[bytes, list[int]]] = {}
            for i, (request, (context, option)) in enumerate(zip(requests, pairs, strict=True)):
                if (
                    limit and len(context) + len(option) > limit + 1
                ):  # the last token is not shown to the model
                    raise UserError(
                        f"{place(request)} has {len(context) + len(option):,} tokens, more than the {limit:,} positions of "
                        f"{loaded.tokenizer.directory.name}; give fewer --shots."
                    )
                groups.setdefault(request.task_name, {}).setdefault(context.tobytes(), []).append(i)
            rows = [
                [Row(pairs[of_row[0]][0], tuple(pairs[i][1] for i in of_row)) for of_row in group.values()]
                for group in groups.values()
            ]
            found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
            for group, scored in zip(groups.values(), scorer.judge(rows, advance), strict=True):
                for of_row, scores in zip(group.values(), scored, strict=True):
                    for i, score, greedy in zip(of_row, *scores, strict=True):
                        found[i] = float(score), bool(greedy)
            return found

    def _encode(texts: Sequence[tuple[str, str]]) -> list[tuple[Any, Any]]:
        """Prompt and continuation as the harness divides them: spaces at the end of a prompt go to the continuation."""
        moved = [(a.rstrip(), a[len(a.rstrip()) :] + b) for a, b in texts]
        whole, ends = loaded.tokenizer.encode([a + b for a, b in moved])
        alone, bounds = loaded.tokenizer.encode([a for a, _ in moved])
        found = []
        for (start, end), (first, last), (context, _) in zip(
            itertools.pairwise(ends), itertools.pairwise(bounds), moved, strict=True
        ):
            before = loaded.tokenizer.prefix_ids if context else loaded.start_ids
            ids = np.concatenate((np.array(before, np.int32), alone[first:last])).astype(np.int32)
            found.append((ids, whole[start:end][last - first :].astype(np.int32)))
        return found

    return Model()
