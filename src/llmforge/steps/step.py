"""Running a step: skip it when it is done, build it in a hidden sibling, publish it in one rename.

state of OUT                                    what happens
----------------------------------------------  -----------------------------------------------
absent, or an empty directory                   built
finished, same inputs and arguments             left as it is; the step reports itself done
finished, anything differs                      refused, naming --overwrite (or built again with it)
another command's, or with files of others      refused, whatever the flags
something that llmforge did not write           refused, always: nothing of the user's is deleted
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmforge import hub
from llmforge.console import say
from llmforge.errors import DISK_FULL, InterruptionError, UserError
from llmforge.steps.checksums import checksums
from llmforge.steps.earlier import earlier_fingerprint, is_earlier
from llmforge.steps.fingerprint import combined, fingerprint, fingerprint_json, is_visible
from llmforge.steps.manifest import (
    MANIFEST,
    UNFINISHED,
    Input,
    Manifest,
    command_of,
    is_manifest,
    manifest_path,
    read_manifest,
    write_manifest,
)
from llmforge.steps.places import (
    PLAN,
    Place,
    cannot_write,
    check_apart,
    free_bytes,
    in_the_way,
    locked,
    publish,
    refuse_link,
    remove_tree,
    restore_replaced,
    take_partial,
)
from llmforge.steps.shapes import SHAPES
from llmforge.steps.verify import changed_file, require_whole, unrecorded_entries


@dataclass(frozen=True)
class Step:
    """One step to run.

    `arguments` must be JSON values and hold exactly what decides the bytes of the output (no worker counts, no
    paths of inputs). `single_file`: the output is one file, and its manifest lies beside it. `resumable`: what an
    interrupted build left is handed to the next build of the same inputs and arguments instead of deleted.
    `verify`: True reads every byte of those inputs that llmforge made before the work begins, None only what no
    earlier command has read, False believes their manifests.
    """

    name: str
    output: Path
    arguments: Mapping[str, Any]
    inputs: Sequence[Path] = ()
    overwrite: bool = False
    single_file: bool = False
    resumable: bool = False
    verify: bool | None = None


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
    inputs = read_inputs(step)
    place = Place.of(step.output)
    if done := _find_unlocked(step, inputs, place):
        return done
    if step.verify:
        for path in step.inputs:
            require_whole(path)
    with locked(place):
        restore_replaced(place)
        if done := find_finished(step, inputs):  # another process was faster
            return done
        plan = fingerprint_json([step.name, dict(step.arguments), [i.fingerprint for i in inputs]])
        with _partial(step, place, plan) as partial:
            return _build(step, place, inputs, partial, build)


def read_inputs(step: Step) -> list[Input]:
    """What the step reads, as its manifest will have it; `UserError` where an input is missing, or was changed after
    llmforge had finished it, or is where the output should be.
    """
    check_apart(step.output, step.inputs, step.name)
    return [
        Input(str(path), fingerprint(path, verify=step.verify is not False), hub.name_of(path))
        for path in step.inputs
    ]


def _build(
    step: Step, place: Place, inputs: list[Input], partial: Path, build: Callable[[Path], Outcome]
) -> Finished:
    built = partial
    if step.single_file:
        built = partial / "built" / step.output.name
        built.parent.mkdir(exist_ok=True)
    outcome = build(built)
    record = Manifest(
        step=step.name,
        arguments=dict(step.arguments),
        inputs=inputs,
        outputs={**outcome.outputs, **record_files(built, outcome.fingerprints)},
        metrics=dict(outcome.metrics),
    )
    manifest = write_manifest(manifest_path(built), record)
    if step.single_file:
        # The manifest first: without its file it is an output that is still to be made, with another one that was
        # changed; a file without manifest would be anybody's.
        manifest_path(built).replace(_beside(place.output))
        built.replace(place.output)
        remove_tree(partial)
    else:
        if place.output.is_dir() and any(place.output.iterdir()):
            _refuse_foreign(step, place.output, InterruptionError)  # put there while the step was built
        (partial / PLAN).unlink()
        publish(partial, place.output)
    return Finished(step.output, manifest, skipped=False)


def record_files(
    built: Path,
    known: Mapping[str, str] | None = None,
    counts: Callable[[str], bool] = lambda name: True,
) -> dict[str, Any]:
    """The part of a manifest's `outputs` that speaks of files: `fingerprint`, `files` (sizes) and `checksums` of the
    directory or file `built`. Hidden files, and manifests of outputs inside it, are recorded, but no part of the
    fingerprint.

    `known` are checksums that were taken already, by name; `counts` says which files are part of the output.
    """
    known = known or {}
    files = [(built.name, built)]
    if not built.is_file():
        below = sorted((file.relative_to(built).as_posix(), file) for file in built.rglob("*"))
        files = [
            (name, file)
            for name, file in below
            if name not in (MANIFEST, UNFINISHED, PLAN) and file.is_file() and counts(name)
        ]
    unread = [(name, file) for name, file in files if name not in known]
    made = dict(zip((n for n, _ in unread), checksums([f for _, f in unread]), strict=True))
    found = {name: known.get(name) or made[name] for name, _ in files}
    return {
        "fingerprint": found[built.name]
        if built.is_file()
        else combined((name, one) for name, one in found.items() if is_visible(name)),
        "files": {name: file.stat().st_size for name, file in files},
        "checksums": found,
    }


def add_metrics(finished: Finished, **metrics: Any) -> Finished:
    """Writes further `metrics` into the manifest of a finished output, which is otherwise left as it is."""
    manifest = replace(finished.manifest, metrics={**finished.manifest.metrics, **metrics})
    return replace(finished, manifest=write_manifest(manifest_path(finished.output), manifest))


def find_finished(step: Step, inputs: Sequence[Input] | None = None) -> Finished | None:
    """The finished output of this very step, None where it is still to be built, `UserError` where it may not be."""
    output = step.output
    check_apart(output, step.inputs, step.name)
    if not output.exists() or (output.is_dir() and not step.single_file and not any(output.iterdir())):
        refuse_link(output)
        beside = _beside(output)
        if step.single_file and os.path.lexists(beside) and (beside.is_symlink() or not is_manifest(beside)):
            raise in_the_way(beside)
        return None
    if output.is_file() != step.single_file or not manifest_path(output).is_file():
        raise UserError(
            f"{output} exists and was not written by {command_of(step.name)}; choose another output or move it away."
        )
    manifest = read_manifest(output)
    if manifest.step != step.name:
        raise UserError(
            f"{output} is the output of {command_of(manifest.step)}, which --overwrite does not replace; choose another "
            "output, or move it away."
        )
    if step.overwrite:
        refuse_link(output)
        _refuse_foreign(step, output)
        return None
    manifest = read_manifest(output, step.name, SHAPES.get(step.name, {}))  # all that the command shows of it
    if inputs is None:
        inputs = read_inputs(step)
    if difference := _difference(manifest, step.arguments, inputs):
        raise UserError(
            f"{output} is finished, but {difference}; choose another output, or replace it with --overwrite."
        )
    if changed := changed_file(output, manifest):
        refuse_link(output)
        raise UserError(f"{changed} was changed after {output} was finished; replace it with --overwrite.")
    return Finished(output, manifest, skipped=True)


def _find_unlocked(step: Step, inputs: Sequence[Input], place: Place) -> Finished | None:
    """`find_finished` for the many runs that find their output done, also where nothing can be written.

    Another process may be replacing the output: what it looks like meanwhile is decided under the lock.
    """
    for attempt in (1, 2):
        try:
            return find_finished(step, inputs)
        except (UserError, OSError):
            if os.path.lexists(place.lock) or os.path.lexists(place.replaced):
                return None
            if attempt == 2:
                raise
    return None


def _refuse_foreign(step: Step, output: Path, kind: type[UserError] = UserError) -> None:
    """Raises where `output` holds files that llmforge did not write: they would be deleted with it."""
    if not output.is_dir():
        return
    manifest = read_manifest(output) if manifest_path(output).is_file() else Manifest(step.name, {})
    if foreign := unrecorded_entries(output, manifest):
        names = ", ".join(path.relative_to(output).as_posix() for path in foreign[:3])
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise kind(
            f"{output} contains files that {command_of(step.name)} did not write ({names}{more}); move it away, then --overwrite "
            "replaces the rest."
        )


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.{MANIFEST}")


@contextmanager
def _partial(step: Step, place: Place, plan: str) -> Iterator[Path]:
    """The hidden sibling in which `step` is built, removed if the build fails."""
    partial = place.partial
    try:
        take_partial(place, plan, keep=step.resumable)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise _no_room(step, partial, error) from error
        raise cannot_write(step.output, error) from error
    try:
        yield partial
    except BaseException as error:
        # A mistake has to be corrected in the inputs or arguments: nothing could continue from what it left.
        mistake = isinstance(error, UserError) and not isinstance(error, InterruptionError)
        sentence = None
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            sentence = _no_room(step, partial, error)
        if (not step.resumable or mistake) and os.path.lexists(partial):
            remove_tree(partial)
        if sentence:
            raise sentence from error
        raise


def _no_room(step: Step, partial: Path, error: OSError) -> InterruptionError:
    """What was being written, how much of it there was, and how much space is free."""
    files = [file for file in partial.rglob("*") if file.is_file() and not file.is_symlink()]
    newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=partial)
    name = Path(error.filename) if isinstance(error.filename, str) else newest
    written = sum(file.stat().st_size for file in files)
    on = ", which continues from the finished part" if step.resumable else ""
    return InterruptionError(
        f"not enough disk space for {step.output} ({(error.strerror or '').lower()}); free some and run the same command again{on}. "
        f"Writing {name.name} failed after {written / 1e9:.3f} GB in total; "
        f"{free_bytes(partial) / 1e9:.3f} GB are free on that disk."
    )


def _difference(manifest: Manifest, arguments: Mapping[str, Any], inputs: Sequence[Input]) -> str | None:
    for key in sorted({*manifest.arguments, *arguments}):
        old, new = manifest.arguments.get(key), arguments.get(key)
        if fingerprint_json(old) != fingerprint_json(new):
            return f"with {key} = {old} rather than {new}"
    if [i.fingerprint for i in manifest.inputs] != [i.fingerprint for i in inputs]:
        known = {i.fingerprint for i in manifest.inputs}
        changed = next((i.path for i in inputs if i.fingerprint not in known), "their number or order")
        if is_earlier(manifest) and len(manifest.inputs) == len(inputs):
            pairs = zip(manifest.inputs, inputs, strict=True)
            if all(a.fingerprint in (b.fingerprint, earlier_fingerprint(Path(b.path))) for a, b in pairs):
                say(
                    f"note: an earlier version made this from {changed} and recorded only a sample of it; the sample is unchanged, "
                    "the rest cannot be compared."
                )
                return None
        return f"from other inputs ({changed} differs)"
    return None
