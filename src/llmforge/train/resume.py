"""Which checkpoint a run goes on from, and whether it may."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.console import say
from llmforge.engine.build import engine_family
from llmforge.engine.protocol import World
from llmforge.errors import UserError
from llmforge.train import checkpoint
from llmforge.train.config import TrainConfig
from llmforge.train.run import is_modeling
from llmforge.train.save_dir import MODELING


def find_resumed(config: TrainConfig, world: World, identity: Mapping[str, Any], origin: Path) -> Path | None:
    """The checkpoint that --load-checkpoint means; None where it means none, or where there is none yet.

    `identity` is that of the run (dataset, tokenizer, seed), `origin` the model that it would begin with. `UserError`
    where the checkpoint is of another run or another engine.
    """
    wanted = config.load_checkpoint
    if not wanted or is_modeling(Path(wanted)):
        return None
    found = checkpoint.find_checkpoint(config.save_dir, wanted)
    if found is None:
        if world.is_main:
            say(f"{config.save_dir} has no whole checkpoint yet: starting from {origin}.")
        return None
    states = checkpoint.read_states(found)
    for what, value in identity.items():
        if states["identity"][what] != value and not config.allow_changes:
            raise UserError(
                f"{found} belongs to a run with another {what} ({states['identity'][what]}, now {value}); "
                "--allow-changes resumes all the same."
            )
    check_engine(found, states, config, world)
    return found


def check_engine(found: Path, states: Mapping[str, Any], config: TrainConfig, world: World) -> None:
    """The full state of a checkpoint belongs to engines of one family, and with ColossalAI to one plugin and
    layout; its weights start a new stage anywhere.
    """
    saved, ours = states["engine"], engine_family(config.plugin)
    written = f"--plugin {saved['name']} on {states.get('processes')} processes"
    if saved["family"] == ours == "native":
        return
    if saved["family"] == ours and saved["name"] == config.plugin:
        names = ("tp", "pp", "sp", "zero")
        now = [getattr(config, name) or 0 for name in names]
        if saved["sizes"] == now and states.get("processes") == world.size:
            return
        written += "".join(f" --{n} {v}" for n, v in zip(names, saved["sizes"], strict=True) if v > 1)
    raise UserError(
        f"{found} was written by {written}; its full state resumes there only, but --load-checkpoint "
        f"{found / MODELING} starts a new stage from its weights."
    )
