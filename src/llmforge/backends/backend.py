"""A backend: one way to run a training, as one object that everything else asks.

`plan`, `doctor`, `launch` and `train` know no backend by name; they ask the object that `registry` finds. Nothing here imports
torch: options are checked, and machines judged, before anything is loaded.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from llmforge.errors import UsageError

if TYPE_CHECKING:
    from llmforge.backends.base import Engine, World
    from llmforge.backends.common.settings import Settings
    from llmforge.weights.directory import ModelDirectory


@dataclass(frozen=True)
class Verdict:
    """What a machine can do with a backend. `runs`: "yes", "rehearsal" (with --rehearse, on the CPU) or "no".

    `missing` keeps the backend from running; `notes` say what it does without.
    """

    runs: str
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sharding:
    """How many processes share what of a model with P parameters, for estimates of memory.

    `low`: weights and gradients lie in the dtype of training, and the optimizer keeps float32 ones; otherwise they lie
    in float32. `model` processes hold other parts of the model (tensor and pipeline parallel); `weights`, `gradients`
    and `optimizer` say among how many of the remaining each is cut; `activations` share those of a row. `keeps_gathered`:
    weights that were gathered for the forward pass stay for the backward pass on devices that have room for all
    (`backends.common.memory.fits_gathered`).
    """

    low: bool = False
    model: int = 1
    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    activations: int = 1
    keeps_gathered: bool = False


class Backend(ABC):
    """`name` is what `--plugin` takes. `family` is in checkpoints: with `exchanges_state` its backends resume each other's
    on any number of processes; without, only a run of the same name, processes and options for sharing resumes one.

    `takes` are the options of `train` that ask more of an engine than the others do, and that this one carries out.

    `needs` is what it asks of a machine, in words. `process_group` is torch's name for the group of its processes on
    GPUs. `calls_again`: a module may be called several times in a step; where not, the calls of all ranks must match.
    """

    name: str
    family: ClassVar[str]
    exchanges_state: ClassVar[bool] = False
    needs: str
    process_group: ClassVar[str] = "nccl"
    calls_again: bool = True
    takes: ClassVar[frozenset[str]] = frozenset()

    def check_options(self, options: Any) -> None:
        """Raises `UsageError` for options of `train` that contradict this backend."""
        refuse_options_of_3d(self.name, options)
        if options.rehearse:
            raise UsageError(
                f"--rehearse contradicts --plugin {self.name}, which runs on a CPU without it; as it is."
            )

    def check_environment(self, options: Any, has_gpu: bool) -> None:  # noqa: B027 - most ask for nothing
        """Raises `UserError` where this process cannot run it; what `requirements` says, of this process."""

    def lacking(self, versions: Mapping[str, str | None]) -> str | None:
        """The sentence for a host whose packages (None: not installed) cannot run it; None where they can."""
        return None

    def check_model(  # noqa: B027 - most take any
        self, options: Any, model: "ModelDirectory", processes: int, length: int | None = None
    ) -> None:
        """Raises `UserError` for the model directory `model`, shared by so many processes, and for rows of `length`
        tokens where it is known. Reads the configuration alone.
        """

    def data_processes(self, options: Any, processes: int) -> int:
        """How many of the processes take rows of their own."""
        return processes

    def automatic_precision(self, fast_bf16: bool) -> str:
        """What `--mixed-precision auto` means, on a device that computes bf16 by itself or not."""
        return "bf16" if fast_bf16 else "fp32"

    def refuse_more(self, given: Sequence[str]) -> None:
        """Raises `UsageError` for the first of the options `given`, by the names of their fields, that is not in `takes`."""
        if refused := [name for name in given if name not in self.takes]:
            raise UsageError(
                f"--{refused[0].replace('_', '-')} contradicts --plugin {self.name}; use native, ddp or fsdp."
            )

    @abstractmethod
    def requirements(self, facts: dict[str, Any]) -> Verdict:
        """What the machine that `doctor` described in `facts` can do."""

    @abstractmethod
    def sharding(self, options: Any, processes: int) -> Sharding:
        """How memory is shared among `processes`."""

    @abstractmethod
    def build(self, options: Any, settings: "Settings", world: "World") -> "Engine":
        """The engine, with the weights of `settings.model`. Collective."""


def refuse_options_of_3d(plugin: str, options: Any) -> None:
    """Raises `UsageError` for options that say how 3d shares a model."""
    for name in ("tp", "pp", "sp"):
        if getattr(options, name) > 1:
            raise UsageError(f"--{name} {getattr(options, name)} contradicts --plugin {plugin}; use 3d.")
    if options.sp_mode is not None:
        raise UsageError(f"--sp-mode {options.sp_mode} contradicts --plugin {plugin}; use 3d.")
    if options.zero is not None:
        raise UsageError(f"--zero {options.zero} contradicts --plugin {plugin}; use zero1, zero2 or 3d.")
    if options.pipeline_micro_batch_size is not None:
        raise UsageError(
            f"--pipeline-micro-batch-size goes with --plugin 3d and --pp; --plugin {plugin} has no pipeline."
        )
