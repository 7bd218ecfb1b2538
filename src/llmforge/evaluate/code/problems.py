"""Files of programming problems: HumanEval's and MBPP's records, in JSONL, JSON, Parquet or CSV, also with .gz."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.console import say
from llmforge.corpus.sources import labeled, own_label, printable
from llmforge.errors import UsageError, UserError
from llmforge.evaluate.tasks.records import SUFFIXES, records

# Where a function has ended (arXiv 2107.03374, section 3.2).
HUMAN_EVAL_STOP = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
MBPP_STOP = ["[DONE]"]
SHOWN = range(
    1, 11
)  # MBPP's problems for prompts, and those that are tested (arXiv 2108.07732, appendix A.1)
TESTED = range(11, 511)


@dataclass(frozen=True)
class Problem:
    """`prompt` is what the model continues. A program is `before`, the continuation, `after`; `place` is for messages."""

    name: str
    prompt: str
    before: str
    after: str
    stop: Sequence[str]
    place: str

    def program(self, completion: str) -> str:
        return f"{self.before}{completion}\n{self.after}\n"


@dataclass(frozen=True)
class CodeTask:
    """The problems behind one label; `shots` solved ones stand before each."""

    label: str
    kind: str
    problems: list[Problem]
    shots: int


def load_code(words: Sequence[str], shots: int, most: int | None = None) -> list[CodeTask]:
    """Reads every `[LABEL=]PATH`; `UserError` with file and line where a record is no problem with tests.

    `shots`: of MBPP alone; HumanEval's prompts are their own examples. `most` keeps the first problems of each file.
    """
    tasks = []
    for label, path in labeled(words):
        if not path.is_file():
            raise UserError(
                f"--code {printable(path)} is not a file; give [LABEL=]PATH of a file of problems."
            )
        if path.suffix.lower() not in (*SUFFIXES, ".gz"):
            raise UserError(f"--code {printable(path)}: the name must end in {', '.join(SUFFIXES)} or .gz.")
        tasks.append(_read(label or own_label(path), path, shots, most))
    labels = [task.label for task in tasks]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"--code has {twice} twice; give LABEL=PATH.")
    return tasks


def _read(label: str, path: Path, shots: int, most: int | None) -> CodeTask:
    found = list(records(path))
    if not found:
        raise UserError(f"--code {printable(path)}: there is no problem in it.")
    if "test_list" not in found[0][1]:
        problems = [_human_eval(record, place) for place, record in found]
        return CodeTask(label, "humaneval", problems[:most], 0)
    numbers = {_number(record, place): (place, record) for place, record in found}
    if shots:
        shown = [numbers[number] for number in SHOWN[1:] if number in numbers][:shots]  # 2, 3, 4 are usual
        if len(shown) < shots:
            raise UserError(
                f"{printable(path)}: --shots {shots} asks for the problems {SHOWN[1]} to {SHOWN[shots]} of MBPP, and it has "
                f"{len(shown)} of {SHOWN[1]} to {SHOWN[-1]}; give --shots {len(shown)}, or the whole file."
            )
    else:
        shown = []
    measured = list(numbers.values())
    if len(tested := [one for number, one in numbers.items() if number in TESTED]) < len(measured) and tested:
        say(
            f"{label}: the {len(tested):,} problems {TESTED[0]} to {TESTED[-1]} are measured, as MBPP's authors do."
        )
        measured = tested
    head = "".join(
        f"{_mbpp_prompt(record, place)}{_text(record, ('code',), place)}\n[DONE]\n\n"
        for place, record in shown
    )
    return CodeTask(label, "mbpp", [_mbpp(record, place, head) for place, record in measured[:most]], shots)


def _human_eval(record: Mapping[Any, Any], place: str) -> Problem:
    prompt, entry = _text(record, ("prompt",), place), _text(record, ("entry_point",), place)
    tests = _text(record, ("test",), place)
    if not entry.isidentifier():
        raise UserError(f"{place}: the entry_point {entry!r} is no name of a function.")
    _parsed(tests, place)
    if "def check(" not in tests:
        raise UserError(f"{place}: the field 'test' defines no function check(candidate).")
    return Problem(
        str(record.get("task_id", place)), prompt, prompt, f"{tests}\ncheck({entry})", HUMAN_EVAL_STOP, place
    )


def _mbpp(record: Mapping[Any, Any], place: str, head: str) -> Problem:
    imports = record.get("test_imports")
    setup = [*(imports if isinstance(imports, list) else []), record.get("test_setup_code") or ""]
    after = "\n".join([*map(str, setup), *_tests(record, place)])
    _parsed(after, place)
    return Problem(
        f"MBPP/{record['task_id']}", head + _mbpp_prompt(record, place), "", after, MBPP_STOP, place
    )


def _mbpp_prompt(record: Mapping[Any, Any], place: str) -> str:
    """The words of MBPP's authors (arXiv 2108.07732, section 3)."""
    tests = "\n".join(_tests(record, place))
    return (
        f"You are an expert Python programmer, and here is your task: {_text(record, ('text', 'prompt'), place)} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _tests(record: Mapping[Any, Any], place: str) -> list[str]:
    tests = record.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) and t.strip() for t in tests):
        raise UserError(
            f"{place}: there are no tests (a list of assert statements in the field 'test_list')."
        )
    return tests


def _number(record: Mapping[Any, Any], place: str) -> int:
    number = record.get("task_id")
    if isinstance(number, bool) or not isinstance(number, int):
        raise UserError(f"{place}: there is no number in the field 'task_id'.")
    return number


def _text(record: Mapping[Any, Any], names: Sequence[str], place: str) -> str:
    text = next((record[name] for name in names if record.get(name) is not None), None)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: there is no text in the field '{names[0]}'.")
    return text


def _parsed(tests: str, place: str) -> None:
    """The tests are Python; a statement that is none would fail every program."""
    try:
        ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{place}: the tests are no Python ({error.args[0] if error.args else error})."
        ) from None
