"""What ColossalAI 0.5.0 misses on a newer torch, or without packages that it imports and never uses for us.

Each adjustment says why it is there and when it can go. `install` makes all of them; it is called before
ColossalAI's plugins are imported, and changes nothing that is there.
"""

import importlib.machinery
import sys
import types
import warnings
from collections.abc import Mapping
from importlib.util import find_spec

import torch.distributed as dist

from llmforge.backends.colossalai.norms import load_kernel


def install() -> None:
    """Makes `colossalai.booster.plugin` importable here."""
    quieten()
    provide_hccl()
    hide_broken_apex()
    import_optimizers()


def import_optimizers() -> None:
    """Imports `colossalai.nn.optimizer` with placeholders for `galore_torch` and `bitsandbytes`: it asks for them on
    its first lines, for optimizers that llmforge does not have, and both need CUDA libraries that GPU images often lack.

    Goes when ColossalAI imports them where they are used (not in 0.5.0). `diffusers` needs no stand-in: only
    ColossalAI's inference imports it.
    """
    # These look for bitsandbytes when they are imported, and must not find a placeholder.
    import peft  # noqa: F401
    import transformers  # noqa: F401

    placeholders = {"galore_torch": {"GaLoreAdafactor": object, "GaLoreAdamW": object}}
    if not find_spec("bitsandbytes"):
        optimizer = "bitsandbytes.optim.optimizer"
        placeholders |= {"bitsandbytes": {}, "bitsandbytes.optim": {}, optimizer: {"Optimizer2State": object}}
    made = [name for name, attributes in placeholders.items() if provide(name, attributes)]
    try:
        import colossalai.nn.optimizer  # noqa: F401
    finally:
        for name in made:
            del sys.modules[name]


def provide(name: str, attributes: Mapping[str, object]) -> bool:
    """Puts a module `name` where imports find it, unless there is one; whether it did."""
    if name in sys.modules or ("." not in name and find_spec(name)):
        return False
    module = types.ModuleType(name, "A placeholder of llmforge: see llmforge.backends.colossalai.compat.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    for key, value in attributes.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return True


def provide_hccl() -> None:
    """The names of Ascend's backend in `torch.distributed`, which pipeline parallelism compares with on any device.

    torch had them up to 2.5 and lost them in 2.6. Goes when ColossalAI's `pipeline/p2p.py` asks torch_npu.
    """
    if not hasattr(dist.Backend, "HCCL"):
        dist.Backend.HCCL = "hccl"  # type: ignore[attr-defined]
    if not hasattr(dist, "is_hccl_available"):
        dist.is_hccl_available = lambda: False  # type: ignore[attr-defined]


def hide_broken_apex() -> None:
    """Makes an apex that does not work one that is not there: ColossalAI skips the latter alone, and dies of a
    package that fails on import in another way.

    Goes when ColossalAI's `shardformer/layer/normalization.py` catches every exception (not in 0.5.0).
    """
    if load_kernel()[0] is None:
        sys.modules["apex"] = None  # type: ignore[assignment]


def quieten() -> None:
    """No warnings about what users cannot change: deprecated calls of ColossalAI's, and packages that only its async
    saving and its own fused norms would use. Goes with them.
    """
    for module in (r"colossalai\.", r"torch\.distributed\.c10d_logger"):
        warnings.filterwarnings("ignore", module=module)
