"""One look at one package, in a process of its own: a package that crashes on import takes only the probe along.

python -m llmforge.doctor.probe torch        prints one JSON object
"""

import json
import sys
import tempfile
from importlib import import_module
from typing import Any

# What has to be imported to know that a package works; its own name where it is not here.
MODULES = {
    "flash-attn": ("flash_attn.flash_attn_interface",),
    # PyPI's package of that name lacks the first, a build without CUDA the second.
    "apex": ("apex.normalization", "fused_layer_norm_cuda"),
    "colossalai": ("colossalai.booster.plugin",),
}


def probe(name: str) -> dict[str, Any]:
    """What is to be known of a package beyond its version; {} for most."""
    if name == "torch":
        return probe_torch()
    if name == "colossalai":
        from llmforge.backends.colossalai import compat

        compat.install()
    for module in MODULES.get(name, (name.replace("-", "_"),)):
        import_module(module)
    return {}


def probe_torch() -> dict[str, Any]:
    """torch's CUDA, its GPUs (memory in bytes), and the ways in which processes can talk: gloo is tried."""
    import torch
    import torch.distributed as dist

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{about.major}.{about.minor}"
        gpus.append({"name": about.name, "memory": total, "free": free, "capability": capability})
    nccl = None
    if gpus and dist.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return {"cuda": torch.version.cuda, "gpus": gpus, "nccl": nccl, "gloo": gloo_works()}


def gloo_works() -> bool:
    """Whether a group of one process can be made and can sum."""
    import torch
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as directory:
        try:
            place = f"file://{directory}/store"
            dist.init_process_group("gloo", init_method=place, rank=0, world_size=1)
            dist.all_reduce(torch.ones(1))
            dist.destroy_process_group()
        except (RuntimeError, ValueError, OSError):
            return False
    return True


if __name__ == "__main__":
    try:
        answer = probe(sys.argv[1])
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    print("\n" + json.dumps(answer))
