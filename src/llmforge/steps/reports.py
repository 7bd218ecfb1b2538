"""Single files that a command writes beside its work (`--output`, `--html`, `--config-file`): never over anything that
is not an earlier one of that command, as it was written.
"""

import os
from pathlib import Path

from llmforge.errors import UserError
from llmforge.steps.manifest import manifest_path, read_manifest
from llmforge.steps.places import Place, cannot_write
from llmforge.steps.step import Outcome, Step, find_finished, run_step
from llmforge.steps.verify import changed_file


def check_report(path: Path, command: str, flag: str) -> None:
    """Raises `UserError` where `command` may not write the file `path` that `flag` names; to be called before the work."""
    try:
        _check(path, command)
    except UserError as error:
        raise UserError(f"{flag} {error}") from error


def _check(path: Path, command: str) -> None:
    find_finished(_step(path, command))
    if path.is_file() and manifest_path(path).is_file() and changed_file(path, read_manifest(path)):
        raise UserError(
            f"{path} was changed after llmforge {command} wrote it; name another file, or move it away."
        )
    above = Place.of(path).output.parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise cannot_write(path, NotADirectoryError(0, f"{above} is not a directory"))
    if not os.access(above, os.W_OK | os.X_OK):
        raise cannot_write(path, PermissionError(0, f"no permission in {above}"))


def write_report(path: Path, text: str, command: str, flag: str) -> None:
    """Writes `text` to the file `path` in one move, in UTF-8, with a manifest beside it that tells it from others."""
    check_report(path, command, flag)

    def build(built: Path) -> Outcome:
        built.write_text(text, encoding="utf-8")
        return Outcome()

    run_step(_step(path, command), build)


def _step(path: Path, command: str) -> Step:
    return Step(command, path, {}, overwrite=True, single_file=True)
