"""What ColossalAI 0.5.0 misses on a newer torch, or without packages that it imports and never uses for us.

Each adjustment says why it is there and when it can go. `install` makes all of them; it is called before
ColossalAI's plugins are imported, and changes nothing that is there.
"""

import importlib.machinery
import sys
import types
import warnings
from importlib.util import find_spec

import torch.distributed as dist


def install() -> None:
    """Makes `colossalai.booster.plugin` importable here."""
    provide_optional_packages()
    provide_hccl()
    quieten()


def provide_optional_packages() -> None:
    """Placeholders for `galore_torch` and `bitsandbytes`, which `colossalai.nn.optimizer` imports on its first line
    for optimizers that llmforge does not have; both need CUDA libraries that GPU images often lack.

    Goes when ColossalAI imports them where they are used (not in 0.5.0). `diffusers` needs none: only
    ColossalAI's inference imports it.
    """
    _provide("galore_torch", GaLoreAdafactor=object, GaLoreAdamW=object)
    if not find_spec("bitsandbytes"):
        for name in ("bitsandbytes", "bitsandbytes.optim"):
            _provide(name)
        _provide("bitsandbytes.optim.optimizer", Optimizer2State=object)


def provide_hccl() -> None:
    """The names of Ascend's backend in `torch.distributed`, which pipeline parallelism compares with on any device.

    torch had them up to 2.5 and lost them in 2.6. Goes when ColossalAI's `pipeline/p2p.py` asks torch_npu.
    """
    if not hasattr(dist.Backend, "HCCL"):
        dist.Backend.HCCL = "hccl"  # type: ignore[attr-defined]
    if not hasattr(dist, "is_hccl_available"):
        dist.is_hccl_available = lambda: False  # type: ignore[attr-defined]


def quieten() -> None:
    """No warnings about what users cannot change: deprecated calls of ColossalAI's, and packages that only its async
    saving and its own fused norms would use. Goes with them.
    """
    for module in (r"colossalai\.", r"torch\.distributed\.c10d_logger"):
        warnings.filterwarnings("ignore", module=module)


def _provide(name: str, **attributes: object) -> None:
    if name in sys.modules or ("." not in name and find_spec(name)):
        return
    module = types.ModuleType(name, "A placeholder of llmforge: see llmforge.engine.colossal.compat.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    for key, value in attributes.items():
        setattr(module, key, value)
    sys.modules[name] = module
