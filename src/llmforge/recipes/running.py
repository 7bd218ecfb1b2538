"""Running the steps of a recipe in order, each as a process of its own."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llmforge.console import say, show, show_table
from llmforge.errors import InterruptionError, UsageError, UserError
from llmforge.recipes.child import Ended, run_child
from llmforge.recipes.recipe import Step
from llmforge.recipes.wiring import output_of

STOPPED = InterruptionError.stopped_exit_code


def choose(steps: Sequence[Step], start: str | None, only: str | None) -> list[Step]:
    """The steps from --from on, or the one of --only; each is a number, or the name of a command that stands once."""
    if start is not None:
        return list(steps[_find(steps, start, "--from") :])
    if only is not None:
        return [steps[_find(steps, only, "--only")]]
    return list(steps)


def _find(steps: Sequence[Step], wanted: str, flag: str) -> int:
    if wanted.isdecimal() and 1 <= int(wanted) <= len(steps):
        return int(wanted) - 1
    found = [step.number for step in steps if step.name == " ".join(wanted.replace("_", "-").split())]
    if len(found) == 1:
        return found[0] - 1
    if found:
        raise UsageError(
            f"{flag} {wanted}: steps {', '.join(map(str, found))} have this name; give the number."
        )
    known = ", ".join(f"{step.number} {step.name}" for step in steps)
    raise UsageError(f"{flag} {wanted}: the recipe has no such step; its steps are {known}.")


def run_recipe(steps: Sequence[Step], total: int, debug: bool) -> None:
    """Runs `steps`, which are of `total`, in order, and stops at the first that fails or is stopped."""
    for step in steps:
        say(f"\n[{step.number}/{total}] {shlex.join(['llmforge', *step.words])}")
        began, at = time.monotonic(), len(step.name.split())
        words = for_training(step.words)
        words = [*words[:at], "--debug", *words[at:]] if debug else words
        ended = run_child([sys.executable, "-m", "llmforge", *words])
        _check_end(ended, f"step {step.number} ({step.name})")
        say(f"[{step.number}/{total}] {step.name}: {time.monotonic() - began:.0f} s")
    made = [(step.name, path) for step in steps for path in step.outputs.values()]
    width = max((len(name) for name, _ in made), default=0)
    show("\n".join(["\nmade:", *(f"  {name:<{width}}  {path}" for name, path in made)]))


def show_steps(steps: Sequence[Step], total: int) -> None:
    """What would run: each command, and a table of what reads and writes what."""
    for step in steps:
        say(f"\n[{step.number}/{total}] {shlex.join(['llmforge', *step.words])}")
    rows = []
    for step in steps:
        inputs = [f"{key}: {text}{'*' if key in step.wired else ''}" for key, text in step.inputs.items()]
        outputs = [*step.outputs.values()]
        there = "exists" if outputs and all(Path(path).exists() for path in outputs) else ""
        rows.append([str(step.number), step.name, "\n".join(inputs), "\n".join(outputs), there])
    show_table(
        ["step", "command", "reads (* from a step before)", "writes", ""], rows, text_columns=(1, 2, 3, 4)
    )


def _check_end(ended: Ended, step: str) -> None:
    if ended.asked or (ended.code == STOPPED):
        how = f"by {ended.asked.name}" if ended.asked else "before its end"
        where = "stopped before the next one" if not ended.code else f"{step} was stopped"
        error = InterruptionError(f"{where} {how}; run the recipe again to continue.")
        error.exit_code = 128 + ended.asked if ended.asked else STOPPED
        raise error
    if ended.code:
        raise UserError(
            f"{step} ended with exit code {ended.code}; correct its input and run the recipe again."
        )


def for_training(words: Sequence[str]) -> list[str]:
    """The command with what a recipe adds to a training, launched or not.

    `train` writes in place for weeks and waits to be told to continue with what it began; a recipe always continues. A
    training that was stopped before its end has to be told from one that is finished.
    """
    command = list(words)
    if command[0] not in ("train", "launch"):
        return command
    if "--stopped-exit-code" not in command:
        command = [command[0], "--stopped-exit-code", str(STOPPED), *command[1:]]
    output = output_of(command)
    begun = output is not None and (Path(output) / "run.json").is_file()
    return (
        [*command, "--load-checkpoint", "latest"] if begun and "--load-checkpoint" not in command else command
    )
