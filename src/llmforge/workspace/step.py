"""Running a step: skip it when it is done, build it in a hidden sibling, publish it in one rename.

state of OUT                                    what happens
----------------------------------------------  -----------------------------------------------
absent, or an empty directory                   built
finished, same inputs and arguments             left as it is; the step reports itself done
finished, anything differs                      refused, naming --overwrite (or built anew with it)
something that llmforge did not write           refused, always: nothing of the user's is deleted
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmforge.errors import DISK_FULL, InterruptionError, UserError
from llmforge.workspace.fingerprint import fingerprint, fingerprint_contents, fingerprint_json, visible_files
from llmforge.workspace.manifest import (
    Input,
    Manifest,
    changed_file,
    manifest_path,
    read_manifest,
    write_manifest,
)

PLAN = ".plan"


@dataclass(frozen=True)
class Step:
    """One step to run.

    `arguments` must be JSON values and hold exactly what decides the bytes of the output (no worker counts, no
    paths of inputs). `single_file`: the output is one file, and its manifest lies beside it. `resumable`: what an
    interrupted build left is handed to the next build of the same inputs and arguments instead of deleted.
    """

    name: str
    output: Path
    arguments: Mapping[str, Any]
    inputs: Sequence[Path] = ()
    overwrite: bool = False
    single_file: bool = False
    resumable: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a build adds to the manifest; `fingerprints` of files that it has read already, by name in the output."""

    outputs: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A finished step; `skipped` when it had been finished before this run."""

    output: Path
    manifest: Manifest
    skipped: bool


def run_step(step: Step, build: Callable[[Path], Outcome]) -> Finished:
    """Runs `build(path)` unless the step is done, and publishes what it wrote at `path`.

    `path` is a directory that exists (for `single_file`, a file to be written). Raises `UserError` for every state
    of the output that does not allow it, and `InterruptionError` for a full disk; whatever else `build` raises passes
    through. All leave the output untouched.
    """
    inputs = [Input(str(path), fingerprint(path)) for path in step.inputs]
    if done := find_finished(step, inputs):
        return done
    with _locked_partial(
        step, fingerprint_json([step.name, dict(step.arguments), [i.fingerprint for i in inputs]])
    ) as partial:
        built = partial / step.output.name if step.single_file else partial
        outcome = build(built)
        files = (
            {built.name: built.stat().st_size}
            if step.single_file
            else {n: f.stat().st_size for n, f in visible_files(built)}
        )
        record = Manifest(
            step=step.name,
            arguments=dict(step.arguments),
            inputs=inputs,
            outputs={
                **outcome.outputs,
                "fingerprint": fingerprint_contents(built, outcome.fingerprints),
                "files": files,
            },
            metrics=dict(outcome.metrics),
        )
        if step.single_file:
            manifest_path(step.output).unlink(missing_ok=True)
            built.replace(step.output)
            manifest = write_manifest(manifest_path(step.output), record)
            (partial / PLAN).unlink()
            partial.rmdir()
        else:
            manifest = write_manifest(manifest_path(partial), record)
            (partial / PLAN).unlink()
            publish(partial, step.output)
    return Finished(step.output, manifest, skipped=False)


def add_metrics(finished: Finished, **metrics: Any) -> Finished:
    """Writes further `metrics` into the manifest of a finished output, which is otherwise left as it is."""
    manifest = replace(finished.manifest, metrics={**finished.manifest.metrics, **metrics})
    return replace(finished, manifest=write_manifest(manifest_path(finished.output), manifest))


def find_finished(step: Step, inputs: Sequence[Input] | None = None) -> Finished | None:
    """The finished output of this very step, None where it is still to be built, `UserError` where it may not be."""
    output = step.output
    _restore_replaced(output)
    if any(_inside(path, output) for path in step.inputs):
        raise UserError(
            f"{output} is both an input and the output of llmforge {step.name}; choose another output."
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if output.is_file() != step.single_file or not manifest_path(output).is_file():
        raise UserError(
            f"{output} exists and was not written by llmforge {step.name}; choose another output or move it away."
        )
    manifest = read_manifest(output)
    if step.overwrite:
        return None
    if manifest.step != step.name:
        raise UserError(
            f"{output} is the output of llmforge {manifest.step}; choose another output, or --overwrite to replace it."
        )
    if inputs is None:
        inputs = [Input(str(path), fingerprint(path)) for path in step.inputs]
    if difference := _difference(manifest, step.arguments, inputs):
        raise UserError(
            f"{output} is finished, but {difference}; choose another output, or --overwrite to make it again."
        )
    if changed := changed_file(output, manifest):
        raise UserError(f"{changed} was changed after {output} was finished; --overwrite makes it again.")
    return Finished(output, manifest, skipped=True)


def publish(built: Path, output: Path) -> None:
    """Moves the finished directory `built` to `output` (same file system), replacing what llmforge had there."""
    _sync_directory(built)
    replaced = output.with_name(f".{output.name}.replaced")
    if output.is_dir():
        if any(output.iterdir()):
            output.rename(replaced)
        else:
            output.rmdir()
    built.rename(output)
    _sync_directory(output.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


@contextmanager
def _locked_partial(step: Step, plan: str) -> Iterator[Path]:
    """The hidden sibling in which `step` is built, locked against a second process, removed if the build fails."""
    partial = step.output.with_name(f".{step.output.name}.partial")
    try:
        step.output.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock_directory(partial)
    except BlockingIOError:
        raise UserError(
            f"another llmforge is writing {step.output} right now; wait for it or choose another output."
        ) from None
    except OSError as error:
        raise UserError(
            f"{step.output} cannot be written ({error.strerror}); choose another output."
        ) from error
    try:
        plan_file = partial / PLAN
        if not (step.resumable and plan_file.is_file() and plan_file.read_text() == plan):
            empty_directory(partial)
            plan_file.write_text(plan)
        try:
            yield partial
        except BaseException as error:
            # A mistake has to be mended in the inputs or arguments: nothing could go on from what it left.
            mistake = isinstance(error, UserError) and not isinstance(error, InterruptionError)
            if (not step.resumable or mistake) and partial.exists():
                shutil.rmtree(partial)
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                on = ", which goes on from what is finished" if step.resumable else ""
                raise InterruptionError(
                    f"no room for {step.output} ({(error.strerror or '').lower()}); make room and run the same command "
                    f"again{on}."
                ) from error
            raise
    finally:
        os.close(descriptor)


def _lock_directory(directory: Path) -> int:
    """An open descriptor that holds the exclusive lock of `directory`, which is made if need be."""
    while True:
        directory.mkdir(exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and flock its holder may have published it: then the lock is on the wrong directory.
            if directory.exists() and os.fstat(descriptor).st_ino == directory.stat().st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _difference(manifest: Manifest, arguments: Mapping[str, Any], inputs: Sequence[Input]) -> str | None:
    for key in sorted({*manifest.arguments, *arguments}):
        old, new = manifest.arguments.get(key), arguments.get(key)
        if fingerprint_json(old) != fingerprint_json(new):
            return f"with {key} = {old} rather than {new}"
    if [i.fingerprint for i in manifest.inputs] != [i.fingerprint for i in inputs]:
        known = {i.fingerprint for i in manifest.inputs}
        changed = next((i.path for i in inputs if i.fingerprint not in known), "their number or order")
        return f"from other inputs ({changed} differs)"
    return None


def _restore_replaced(output: Path) -> None:
    """Undoes a replacement that was cut short between its two renames."""
    replaced = output.with_name(f".{output.name}.replaced")
    if replaced.exists():
        if output.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(output)


def _inside(path: Path, directory: Path) -> bool:
    return path.resolve() == directory.resolve() or directory.resolve() in path.resolve().parents


def empty_directory(directory: Path) -> None:
    """Deletes everything in `directory`."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
