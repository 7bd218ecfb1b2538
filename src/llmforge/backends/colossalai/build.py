"""Making the engine of a ColossalAI plugin from the configuration of a run."""

from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from llmforge.backends.base import World
from llmforge.backends.colossalai import rules
from llmforge.backends.colossalai.rehearsal import DIFFERENCES
from llmforge.backends.common.settings import Settings
from llmforge.console import say
from llmforge.errors import UsageError


def build(config: Any, settings: Settings, world: World) -> Any:
    """The engine of `config.plugin`, whose flags, environment and model were checked (`rules`)."""
    from llmforge.backends.colossalai import compat

    compat.install()
    from llmforge.backends.colossalai.engine import ColossalEngine, Layout
    from llmforge.backends.colossalai.gemini import GeminiEngine
    from llmforge.backends.colossalai.hybrid import HybridEngine
    from llmforge.backends.colossalai.plain import TorchDDPEngine, ZeroEngine

    engines: dict[str, type[ColossalEngine]] = {
        **dict.fromkeys((rules.ZERO1, rules.ZERO2, rules.ZERO2_CPU), ZeroEngine),
        **dict.fromkeys((rules.GEMINI, rules.GEMINI_AUTO), GeminiEngine),
        rules.TORCH_DDP: TorchDDPEngine,
        rules.HYBRID: HybridEngine,
    }
    engine = engines[config.plugin]
    if settings.precision not in engine.precisions:
        raise UsageError(
            f"--plugin {config.plugin} trains in {' or '.join(engine.precisions)}; name one of them."
        )
    layout = Layout()
    if config.plugin == rules.HYBRID:
        mode = rules.sequence_mode(config)
        layout = Layout(
            config.tp, config.pp, config.sp, mode, config.zero or 0, config.pipeline_micro_batch_size or 1
        )
    if not dist.is_initialized():  # one process, started without a launcher
        dist.init_process_group(
            "gloo" if config.rehearse else "nccl", store=HashStore(), rank=0, world_size=1
        )
    if config.rehearse and world.is_main:
        say(
            f"rehearsing --plugin {config.plugin} on the CPU; differences from a run on GPUs: {'; '.join(DIFFERENCES)}."
        )
    return engine(config.plugin, settings, world, layout, config.rehearse)
