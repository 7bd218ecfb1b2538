"""PyTorch alone, on a CPU or GPUs, one process or many. Imports no torch before an engine is built."""

from typing import TYPE_CHECKING, Any

from llmforge.backends.backend import Backend, Sharding, Verdict
from llmforge.backends.requirements import broken, flash_attention
from llmforge.errors import UsageError

if TYPE_CHECKING:
    from llmforge.backends.base import Engine, World
    from llmforge.backends.common.settings import Settings


class TorchBackend(Backend):
    """`native` is one process; `ddp` copies the model to every process, `fsdp` shares it among them."""

    family = "native"
    exchanges_state = True
    takes = frozenset(
        (
            "embedding_lr",
            "new_embedding_lr",
            "layer_lr_decay",
            "ema",
            "l2_to_start",
            "distill_from_source",
            "source_model",
            "protect_source",
            "protect_share",
            "lora_dropout",
            "dora",
        )
    )
    process_group = "cpu:gloo,cuda:nccl"  # tensors of the host, too

    def __init__(self, name: str, *, several: bool, shared: bool = False) -> None:
        self.name, self.several, self.shared = name, several, shared
        self.needs = "torch, and gloo or NCCL" if several else "torch"
        self.calls_again = not shared

    def requirements(self, facts: dict[str, Any]) -> Verdict:
        missing = [*broken(facts, "torch"), *broken(facts, "transformers")]
        torch = facts["packages"]["torch"] or {}
        if self.several and not missing and not torch["gloo"] and not torch["nccl"]:
            missing.append("neither gloo nor NCCL works")
        notes = [] if torch.get("gpus") else ["on the CPU: no GPU"]
        notes += [] if missing or not torch.get("gpus") else flash_attention(facts)
        return Verdict("no" if missing else "yes", missing, [] if missing else notes)

    def sharding(self, options: Any, processes: int) -> Sharding:
        cut = processes if self.shared else 1
        return Sharding(weights=cut, gradients=cut, optimizer=cut, keeps_gathered=self.shared)

    def build(self, options: Any, settings: "Settings", world: "World") -> "Engine":
        if self.several and world.size == 1:
            raise UsageError(
                f"--plugin {self.name} needs several processes; start it with torchrun, or use --plugin native."
            )
        if not self.several and world.size > 1:
            raise UsageError(
                f"--plugin {self.name} is one process, but {world.size} were started; use ddp or fsdp."
            )
        from llmforge.backends.torch.engine import NativeEngine
        from llmforge.backends.torch.parallel import DDPEngine, FSDPEngine

        engine = FSDPEngine if self.shared else DDPEngine if self.several else NativeEngine
        return engine(settings, world)


BACKENDS: tuple[Backend, ...] = (
    TorchBackend("native", several=False),
    TorchBackend("ddp", several=True),
    TorchBackend("fsdp", several=True, shared=True),
)
