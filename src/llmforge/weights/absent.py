"""The error where a model directory is expected and something else is there."""

from pathlib import Path

from llmforge.errors import UserError

CONFIG, MODELING = "config.json", "modeling"


def not_a_model(path: Path, flag: str = "") -> UserError:
    """What `path`, that `flag` gave, is instead; of a training or a checkpoint, where the model in it is."""
    why = f"has no {CONFIG}" if path.exists() else "does not exist"
    inner = [path / MODELING, *sorted(path.glob(f"epoch-*_step-*/{MODELING}"), key=_step, reverse=True)]
    if model := next((one for one in inner if (one / CONFIG).is_file()), None):
        why += f"; the model in it is {model}"
    return UserError(f"{flag + ' ' if flag else ''}{path} is not a Hugging Face model directory: it {why}.")


def _step(modeling: Path) -> int:
    number = modeling.parent.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
