"""What the processes of a run must agree on, compared before the first step."""

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.backends.common.processes import Processes
from llmforge.errors import UserError
from llmforge.steps import fingerprint_json
from llmforge.steps.identity import identity
from llmforge.steps.manifest import write_durably
from llmforge.train.options import TrainOptions

# Where things lie may differ from host to host; what they hold may not.
PLACES = (
    "model",
    "source_model",
    "protect_source",
    "data",
    "output",
    "eval_data",
    "eval_tasks",
    "tensorboard_dir",
    "config_file",
    "load_checkpoint",
)
MARK = ".ranks"
SECONDS_TO_APPEAR = 20.0  # file systems that hosts share may show a new file late


def facts(config: TrainOptions, model: Path, contents: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same on every rank: versions, the resolved configuration, and `contents` (fingerprints)."""
    flags = {
        f"--{name.replace('_', '-')}": value for name, value in config.to_json().items() if name not in PLACES
    }
    sizes = sorted((file.name, file.stat().st_size) for file in model.iterdir() if file.is_file())
    settings = (model / "config.json").read_bytes().decode("utf-8", "replace")
    return {**identity(), **flags, **contents, "model": fingerprint_json([sizes, settings])}


def refuse_disagreement(processes: Processes, mine: Mapping[str, Any]) -> None:
    """Collective: raises the same `UserError` on every rank where one has other facts than rank 0."""
    first, *others = processes.gather(dict(mine))
    for rank, theirs in enumerate(others, 1):
        for name in sorted({*first, *theirs}):
            if first.get(name) != theirs.get(name):
                raise UserError(
                    f"{processes.name(rank)} has {name} {theirs.get(name)}, rank 0 has {first.get(name)}: start every "
                    "process with the same command, versions and data."
                )


def refuse_separate_directories(processes: Processes, save_dir: Path) -> None:
    """Collective: raises `UserError` where --output is not the same directory for every rank."""
    if processes.world.size == 1:
        return
    mark = save_dir / MARK

    def write() -> str:
        token = secrets.token_hex(8)
        try:
            write_durably(mark, token.encode())
        except OSError as error:
            raise UserError(
                f"--output {save_dir} cannot be written ({error.strerror}); choose another."
            ) from error
        return token

    token = processes.from_main(write)
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not (seen := _holds(mark, token)) and time.monotonic() < deadline:
        time.sleep(0.5)
    blind = [rank for rank, sees in enumerate(processes.gather(seen)) if not sees]
    if processes.world.is_main:
        mark.unlink(missing_ok=True)
    if blind:
        raise UserError(
            f"--output {save_dir} of {processes.name(blind[0])} is not the directory of rank 0; it must be on a "
            "file system that all hosts share."
        )


def _holds(mark: Path, token: str) -> bool:
    try:
        return mark.read_text() == token
    except OSError:
        return False
