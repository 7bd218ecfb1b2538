"""Which checkpoint a run continues from, whether it may, and how its state comes back."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmforge.backends import registry
from llmforge.backends.base import Engine, World
from llmforge.backends.build import adapters
from llmforge.backends.common.processes import Processes
from llmforge.console import say
from llmforge.errors import UserError
from llmforge.train import branch
from llmforge.train.batches import MicroBatches
from llmforge.train.options import TrainOptions
from llmforge.train.sampler import Sampler
from llmforge.train.save_dir import AVERAGE, MODELING, is_modeling
from llmforge.train.schedule import Schedule
from llmforge.train.states import STATES, RunStates, damaged, read_schedule, read_states


class HasState(Protocol):
    """A callback, as far as its state goes."""

    @property
    def name(self) -> str | None: ...

    def load_state_dict(self, state: Any) -> None: ...


def find_resumed(config: TrainOptions, processes: Processes, identity: Mapping[str, Any]) -> Path | None:
    """Collective: the checkpoint that --load-checkpoint means; None where it means none, or where there is none yet.

    `identity` is that of the run (dataset, tokenizer, seed). `UserError` where the checkpoint is of another run or
    another engine.
    """
    wanted = config.load_checkpoint
    if not wanted or is_modeling(Path(wanted)):
        return None
    found = processes.from_main(lambda: _find(config, wanted))
    if found is None:
        return None
    states = read_states(found)
    for what, value in identity.items():
        if states.identity.get(what, value) != value and not config.allow_changes:
            raise UserError(
                f"{found} belongs to a run with another {what} ({states.identity[what]}, now {value}); "
                "--allow-changes resumes anyway."
            )
    check_engine(found, states, config, processes.world)
    if config.retention.ema is not None and not (found / AVERAGE).is_dir():
        raise UserError(
            f"{found} has no moving average, as its run had no --ema, and one cannot begin in the middle of a run; leave "
            f"out --ema, or start a new stage with --load-checkpoint {found / MODELING}."
        )
    protected, now = states.engine.get("protected"), config.retention.protected_share
    if now is not None and protected != now:
        before = "nothing" if protected is None else f"--protect-share {protected:g}"
        raise UserError(
            f"{found} was trained with {before} frozen for --protect-source, and now it is {now:g}: what moved already cannot be "
            f"frozen as it was; --load-checkpoint {found / MODELING} starts a new stage."
        )
    _check_adapters(found, states, config)
    return found


def _check_adapters(found: Path, states: RunStates, config: TrainOptions) -> None:
    """Raises `UserError` for adapters of another kind than the checkpoint has, whose numbers would mean something else."""
    before, wanted = states.engine.get("adapters"), adapters(config.lora)
    # A version before did not say; and with no adapters now, the state is another anyway.
    if not isinstance(before, dict) or wanted is None:
        return
    for flag, value in wanted.shape.items():
        if before.get(flag, value) != value:
            raise UserError(
                f"{found} was trained with {flag} {before[flag]}, and now it is {value}; --load-checkpoint "
                f"{found / MODELING} starts a new stage from its weights."
            )


def _find(config: TrainOptions, wanted: str) -> Path | None:
    if config.output.is_dir():
        branch.finish_setting_aside(config.output)
    found = branch.find_checkpoint(config.output, wanted, contents=config.verify)
    if found is None:
        say(f"{config.output} has no complete checkpoint yet; starting from {config.model}.")
    return found


def check_steps(
    path: Path, done: int, total: int, now: Schedule, config: TrainOptions, say: Callable[[str], None]
) -> None:
    """Says where the learning rate jumps because a run continues from `path`, after `done` steps, with another schedule;
    `UserError` where it is to end before the steps that are done.
    """
    if total < done:
        given = (
            f"--max-steps {config.max_steps}"
            if config.max_steps == total
            else f"--num-epochs {config.num_epochs}"
        )
        raise UserError(
            f"{path} has done {done:,} steps, but with {given} the run has {total:,}; ask for at least {done:,}, or "
            "resume from an older checkpoint."
        )
    before = read_schedule(path)
    old, new = before.rate(done), now.rate(done)
    if total == done or math.isclose(old, new, rel_tol=1e-3):
        return
    say(
        f"the learning rate jumps from {old:.3g} to {new:.3g} at step {done + 1:,}: the run was planned for "
        f"{before.total:,} steps ({before.name}, at most {before.peak:.3g}), and has {total:,} now ({now.name}, at most "
        f"{now.peak:.3g})."
    )


def check_engine(found: Path, states: RunStates, config: TrainOptions, world: World) -> None:
    """The full state of a checkpoint belongs to engines of one family, and with ColossalAI to one plugin and
    layout; its weights start a new stage anywhere.
    """
    saved, ours = states.engine, registry.find(registry.resolved(config.plugin, world.size))
    written = f"--plugin {saved['name']} on {states.processes} processes"
    if (optimizer := saved.get("optimizer", "adamw")) != config.optimizer:
        raise UserError(
            f"{found} has the state of --optimizer {optimizer}, not of {config.optimizer}; --load-checkpoint "
            f"{found / MODELING} starts a new stage from its weights."
        )
    if saved["family"] == ours.family and ours.exchanges_state:
        return
    if saved["family"] == ours.family and saved["name"] == config.plugin:
        names = ("tp", "pp", "sp", "zero")
        now = [getattr(config, name) or 0 for name in names]
        if saved.get("sizes") == now and states.processes == world.size:
            return
        written += "".join(
            f" --{n} {v}" for n, v in zip(names, saved.get("sizes", []), strict=False) if v > 1
        )
    raise UserError(
        f"{found} was written by {written}; its full state can only be resumed there; --load-checkpoint "
        f"{found / MODELING} starts a new stage from its weights."
    )


def load_engine(engine: Engine, path: Path, say: Callable[[str], None]) -> RunStates:
    """Collective: gives the engine the optimizer and the counters of the checkpoint `path`, and returns its states."""
    states = read_states(path)
    engine.load_state(path / "optimizer")
    if (path / AVERAGE).is_dir():
        engine.load_average(path / AVERAGE)
    engine.restore(states.engine)
    before, now = states.engine.get("description"), engine.describe()
    if before and before != now:
        say(f"{path} was computed by {before}; now it is {now}: results may differ in the last bits.")
    say(f"resuming {path} after step {states.position.step}.")
    return states


def load_callbacks(callbacks: Sequence[HasState], path: Path, states: RunStates) -> None:
    """Gives every callback its state; one that the checkpoint does not know keeps the state of a new run."""
    for callback in callbacks:
        if callback.name and callback.name in states.callbacks:
            try:
                callback.load_state_dict(states.callbacks[callback.name])
            except (LookupError, TypeError, ValueError) as error:
                raise damaged(path / STATES, callback.name) from error


def keep_rows(
    states: RunStates, ours: MicroBatches, processes: int, say: Callable[[str], None]
) -> MicroBatches:
    """A resumed run keeps the rows of a step, whatever the flags and the number of processes are now."""
    if states.rows_per_step == ours.rows_per_step:
        return ours
    say(
        f"a step keeps the {states.rows_per_step} rows of the checkpoint, although the options and {processes} processes "
        f"would give {ours.rows_per_step}."
    )
    return MicroBatches(ours.micro, states.rows_per_step)


def load_sampler(
    sampler: Sampler,
    path: Path,
    states: RunStates,
    dataset: str,
    config: TrainOptions,
    say: Callable[[str], None],
) -> None:
    """Lets the sampler continue behind the last step, from there with the weights of `config`; another dataset than the
    checkpoint's is read from its beginning.
    """
    state = states.sampler
    if states.identity["dataset"] != dataset:
        say("the dataset has changed; it is read from the beginning.")
        state = {"epoch": state["epoch"], "sample": 0}
    try:
        sampler.load_state_dict(state)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path / STATES, "sampler") from error
    sampler.reweight(config.weights(sampler.steps(states.rows_per_step)))
