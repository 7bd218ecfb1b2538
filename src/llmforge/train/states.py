"""`running_states.json` and `lr_scheduler/schedule.json` of a checkpoint, parsed into declared types."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.backends.base import Engine
from llmforge.errors import UserError
from llmforge.sizes import refuse_large
from llmforge.train.schedule import SCHEDULES, Schedule

STATES = "running_states.json"
SCHEDULE = "lr_scheduler/schedule.json"


@dataclass
class Position:
    """Where a run stands: `sample` rows of epoch `epoch` are done, after `step` optimizer steps."""

    step: int = 0
    epoch: int = 0
    sample: int = 0


@dataclass(frozen=True)
class RunStates:
    """What a checkpoint knows of its run, besides weights and optimizer.

    `identity`: fingerprints of dataset and tokenizer, and the seed. `engine`: `family`, `name`, `description` and what
    the engine itself keeps. `callbacks`: the state of each callback that has one, by its name. `sampler`: of a version that had none, `epoch` and `sample`.
    """

    position: Position
    identity: dict[str, Any]
    engine: dict[str, Any]
    counters: dict[str, int]
    rows_per_step: int
    processes: int
    sampler: dict[str, Any]
    callbacks: dict[str, Any]


def read_states(checkpoint: Path) -> RunStates:
    """The running states of `checkpoint`; a `UserError` that names the file and the field where they are damaged."""
    file = checkpoint / STATES
    raw = _read(file)
    position = _table(file, raw, "position", {"step": _count, "epoch": _count, "sample": _count})
    identity = _table(file, raw, "identity", {"dataset": _text, "tokenizer": _text, "seed": _whole})
    engine = _table(file, raw, "engine", {"family": _text, "name": _text, "steps": _count})
    parts = {
        "value": _number,
        "steps_without_overflow": _count,
        "dynamic": lambda value: value in (True, False),
    }
    scale = _table(file, engine, "engine.scale", parts)
    counters = _table(file, raw, "counters", dict.fromkeys(COUNTERS, _count))
    figures = {"count": _count, "mean": _number, "variance": _number}
    guard = _table(file, raw, "guard", {})
    sampler = _table(file, raw, "sampler", {}) if "sampler" in raw else {}
    callbacks = {name: value for name, value in raw.items() if name not in OTHERS}
    callbacks["guard"] = {
        name: {n: table[n] for n in figures}
        for name in ("loss", "norm")
        for table in [_table(file, guard, f"guard.{name}", figures)]
    }
    _field(file, raw, "seen_new_tokens", _hexadecimal)
    if raw.get("unmeasured"):
        _table(file, raw, "unmeasured", {"step": _count})
    return RunStates(
        position=Position(**{name: position[name] for name in ("step", "epoch", "sample")}),
        identity=identity,
        engine={**engine, "scale": {name: scale[name] for name in parts}},
        counters={name: counters[name] for name in COUNTERS},
        rows_per_step=_field(file, raw, "rows_per_step", lambda value: _count(value) and value > 0),
        processes=_field(file, raw, "processes", lambda value: _count(value) and value > 0),
        sampler={"epoch": position["epoch"], "sample": position["sample"], **sampler},
        callbacks=callbacks,
    )


COUNTERS = ("tokens", "skipped_steps", "spikes", "rollbacks")
OTHERS = ("position", "identity", "engine", "counters", "rows_per_step", "processes", "config", "sampler")


def states_text(position: Position, identity: Mapping[str, Any], engine: Engine, **others: Any) -> str:
    """The text of running_states.json. Text, as the thread that writes it must not see what later steps count."""
    written = {"family": engine.family, "name": engine.name, "description": engine.describe()}
    states = {
        "position": asdict(position),
        "identity": identity,
        "engine": {**written, **engine.state()},
        **others,
    }
    return json.dumps(states, indent=2) + "\n"


def read_schedule(checkpoint: Path) -> Schedule:
    """The schedule that `checkpoint` was trained with; `UserError` where the file is damaged."""
    file = checkpoint / SCHEDULE
    raw = _read(file)
    kinds: dict[str, Callable[[Any], bool]] = {
        "name": lambda value: value in SCHEDULES,
        **dict.fromkeys(("peak", "floor"), _number),
        **dict.fromkeys(("warmup", "decay", "total"), _count),
    }
    return Schedule(**{f.name: _field(file, raw, f.name, kinds[f.name]) for f in fields(Schedule)})


def pack(flags: np.ndarray) -> str:
    """Booleans as hexadecimal digits."""
    return np.packbits(flags).tobytes().hex()


def unpack(text: str, count: int) -> np.ndarray:
    """What `pack` was given, (count,) bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=count).astype(bool)


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(refuse_large(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}); resume from another checkpoint.") from error
    if not isinstance(raw, dict):
        raise damaged(file, "its value")
    return raw


def _table(
    file: Path, raw: Mapping[str, Any], name: str, kinds: Mapping[str, Callable[[Any], bool]]
) -> dict[str, Any]:
    value = raw.get(name.rpartition(".")[2])
    if not isinstance(value, dict):
        raise damaged(file, name)
    for inner, fits in kinds.items():
        if not fits(value.get(inner)):
            raise damaged(file, f"{name}.{inner}")
    return value


def _field(file: Path, raw: Mapping[str, Any], name: str, fits: Callable[[Any], bool]) -> Any:
    if not fits(raw.get(name)):
        raise damaged(file, name)
    return raw[name]


def damaged(file: Path, name: str) -> UserError:
    return UserError(
        f"{file} is damaged ({name} is missing or of the wrong kind); resume from another checkpoint."
    )


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return _whole(value) and 0 <= value < 1 << 62


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _hexadecimal(value: Any) -> bool:
    return isinstance(value, str) and len(value) % 2 == 0 and all(c in "0123456789abcdef" for c in value)
