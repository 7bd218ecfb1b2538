"""ColossalAI's plugins as backends. Nothing outside this folder imports ColossalAI, and this file does not either."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from llmforge.backends.backend import Backend, Sharding, Verdict, refuse_options_of_3d
from llmforge.backends.colossalai import rules
from llmforge.backends.common.trainable import parse
from llmforge.backends.requirements import broken, flash_attention, numbers
from llmforge.errors import UsageError, UserError

if TYPE_CHECKING:
    from llmforge.backends.base import Engine, World
    from llmforge.backends.common.settings import Settings
    from llmforge.weights.directory import ModelDirectory

VERSION = "0.5"
INSTALL = "pip install 'llmforge[colossalai]' in a separate environment"
NEEDS = "ColossalAI 0.5, transformers 4.51.3, GPUs (or --rehearse)"


class ColossalBackend(Backend):
    """A plugin of ColossalAI's Booster that cuts data alone: TorchDDP, or ZeRO of a `stage`."""

    family = "colossal"

    def __init__(self, name: str, *, stage: int) -> None:
        self.name, self.stage = name, stage
        self.needs = (
            NEEDS if not stage else f"{NEEDS}; for HybridAdam nvcc of torch's CUDA, CUDA_HOME and c++"
        )

    @property
    def low(self) -> bool:
        """Whether weights lie in the dtype of training, with float32 ones in the optimizer (HybridAdam)."""
        return self.name != rules.TORCH_DDP

    def check_options(self, options: Any) -> None:
        if self.name in (rules.GEMINI, rules.GEMINI_AUTO) and options.tp > 1:
            raise UsageError(
                f"--tp {options.tp} contradicts --plugin {self.name}: in ColossalAI 0.5.0 gemini computes wrong gradients "
                "with tp; use 3d."
            )
        refuse_options_of_3d(self.name, options)
        self._check_common(options)

    def _check_common(self, options: Any) -> None:
        if options.compile:
            raise UsageError(f"--compile contradicts --plugin {self.name}; use ddp or fsdp.")
        wanted = parse(options.trainable)
        if wanted.lora and self.name in (rules.GEMINI, rules.GEMINI_AUTO, rules.HYBRID):
            raise UsageError(f"--trainable lora contradicts --plugin {self.name}; use zero2 or torch_ddp.")
        if wanted.lora and wanted.embeddings:
            raise UsageError(
                f"--trainable {options.trainable} contradicts --plugin {self.name}; use native, ddp or fsdp."
            )
        if self.name in (rules.GEMINI, rules.GEMINI_AUTO) and options.mixed_precision == "fp32":
            raise UsageError(f"--mixed-precision fp32 contradicts --plugin {self.name}; use zero2 or 3d.")
        if options.rehearse and options.attention not in ("auto", "sdpa"):
            raise UsageError(
                f"--attention {options.attention} contradicts --rehearse: its kernel needs a GPU; leave out --attention."
            )

    def check_environment(self, options: Any, has_gpu: bool) -> None:
        if problem := self.lacking({name: rules.installed(name) for name in rules.PACKAGES}):
            raise UserError(problem)
        if not has_gpu and not options.rehearse:
            raise UserError(
                f"--plugin {self.name} needs GPUs, and this machine has none; --rehearse runs it on the CPU."
            )

    def lacking(self, versions: Mapping[str, str | None]) -> str | None:
        return rules.missing_packages(self.name, versions)

    def automatic_precision(self, fast_bf16: bool) -> str:
        # The plugins are made for weights in 16 bits.
        return "bf16" if self.low else super().automatic_precision(fast_bf16)

    def requirements(self, facts: dict[str, Any]) -> Verdict:
        packages = facts["packages"]
        missing = [
            problem for name in ("torch", "transformers", "colossalai") for problem in broken(facts, name)
        ]
        colossalai, transformers = packages["colossalai"], packages["transformers"]
        if colossalai is None:
            missing[-1] += f" ({INSTALL})"
        elif not colossalai["version"].startswith(VERSION):
            missing.append(f"colossalai is {colossalai['version']}, not {VERSION}")
        if transformers and numbers(transformers["version"])[:2] > rules.NEWEST_TRANSFORMERS:
            missing.append(f"transformers is {transformers['version']}, newer than 4.51.3")
        if missing:
            return Verdict("no", missing)
        if not packages["torch"]["gpus"]:
            return Verdict("rehearsal", ["no GPU"])
        if not packages["torch"]["nccl"]:
            return Verdict("no", ["no NCCL, by which GPUs talk"])
        notes = flash_attention(facts) + _fused_norms(facts)
        if self.low and (problem := _kernels(facts)):
            notes.append(f"PyTorch's AdamW for HybridAdam, whose kernels do not build: {problem}")
        return Verdict("yes", [], notes)

    def sharding(self, options: Any, processes: int) -> Sharding:
        return Sharding(
            low=self.low,
            weights=processes if self.stage == 3 else 1,
            gradients=processes if self.stage >= 2 else 1,
            optimizer=processes if self.stage >= 1 else 1,
        )

    def build(self, options: Any, settings: "Settings", world: "World") -> "Engine":
        from llmforge.backends.colossalai.build import build

        return cast("Engine", build(options, settings, world))


class GeminiBackend(ColossalBackend):
    """Gemini: everything in chunks that all ranks share, on the GPU or moved to the host and back."""

    calls_again = False


class HybridBackend(ColossalBackend):
    """3d: tensor, pipeline and sequence parallelism of LLaMA models, times data parallelism."""

    calls_again = False

    def check_options(self, options: Any) -> None:
        self._check_common(options)
        rules.check_3d(options)

    def check_model(
        self, options: Any, model: "ModelDirectory", processes: int, length: int | None = None
    ) -> None:
        rules.check_model_of_3d(options, model, processes, length)

    def data_processes(self, options: Any, processes: int) -> int:
        return processes // int(options.tp * options.pp * options.sp)

    def sharding(self, options: Any, processes: int) -> Sharding:
        model, stage = options.tp * options.pp, options.zero or 0
        data = max(processes // model, 1)
        return Sharding(
            low=True,
            model=model,
            gradients=data if stage >= 2 else 1,
            optimizer=data if stage >= 1 else 1,
            activations=options.tp * options.sp,
        )


def _fused_norms(facts: dict[str, Any]) -> list[str]:
    problems = broken(facts, "apex")
    return [f"the model's own norms: {problems[0]}"] if problems else []


def _kernels(facts: dict[str, Any]) -> str | None:
    """Why ColossalAI's CUDA kernels cannot be built here; None where they can."""
    tools, cuda = facts["tools"], facts["packages"]["torch"]["cuda"]
    absent = [name for name in ("nvcc", "CUDA_HOME", "c++") if not tools[name]]
    if absent:
        return f"no {' and no '.join(absent)}"
    if numbers(tools["nvcc"])[:1] != numbers(cuda or "")[:1]:
        return f"nvcc is of CUDA {tools['nvcc']}, torch of CUDA {cuda}"
    return None


BACKENDS: tuple[Backend, ...] = (
    ColossalBackend(rules.TORCH_DDP, stage=0),
    ColossalBackend(rules.ZERO1, stage=1),
    ColossalBackend(rules.ZERO2, stage=2),
    ColossalBackend(rules.ZERO2_CPU, stage=2),
    GeminiBackend(rules.GEMINI, stage=3),
    GeminiBackend(rules.GEMINI_AUTO, stage=3),
    HybridBackend(rules.HYBRID, stage=0),
)
