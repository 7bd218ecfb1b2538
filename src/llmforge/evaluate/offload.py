"""`--memory-limit`: layers that do not fit stay in the weight files, and each matrix is read where it is computed.

accelerate reads them (its hooks load the weights of a module before it runs and free them after it); what stays on disk is
decided here. The values are the same, so the logits are, too.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmforge.errors import UserError
from llmforge.weights.architecture import mlp_width

UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
LOGIT_BYTES = 12  # of a logit: as computed, those of scored tokens, and their log-softmax
TOKEN_BYTES = 24  # of a unit of the widest layer: some six float32 values live at once
SPARE = 64 << 20  # what the libraries take while they run: threads, kernels, the fragments of the allocator


@dataclass(frozen=True)
class Placement:
    """Where the modules of a model lie: `device_map` as transformers takes it. Sizes are bytes; `limit` is the one asked for.
    In `folder` transformers writes what the weight files hold in another form, such as experts that it joins.
    """

    device_map: dict[str, Any]
    limit: int
    on_disk: int
    weights: int
    folder: "tempfile.TemporaryDirectory[str]" = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="llmforge-")
    )

    def told(self, directory: Path) -> str:
        """What happened, in a sentence. The peak is that of the process, or of a GPU's memory where there is one."""
        peak = peak_memory()
        over = "" if peak <= self.limit else "; the limit was exceeded"
        return (
            f"{directory.name}: peak memory {_size(peak)} of --memory-limit {_size(self.limit)}, "
            f"{_size(self.on_disk)} of {_size(self.weights)} of weights stayed on disk{over}."
        )


def working_bytes(config: Any, tokens: int, logits: int) -> int:
    """Bytes that a batch takes besides the weights: `tokens` tokens with their keys and values, of which `logits` are
    scored.
    """
    text = config.get_text_config()
    kept = 2 * 4 * text.num_hidden_layers * text.hidden_size  # as many heads of keys as of queries, at most
    wide = TOKEN_BYTES * (text.hidden_size + mlp_width(text))
    return int(LOGIT_BYTES * logits * text.vocab_size + tokens * (wide + kept))


def place(model: Any, dtype: torch.dtype, directory: Path, limit: int, working: int) -> Placement:
    """Which parts of `model`, which has no memory yet, may lie in memory as `dtype`, so that the process takes at most `limit`
    bytes. Pages of weight files that are mapped while they are read do not count: the system takes them back.

    A part is a layer, or a module outside of the layers. Layers are left on disk first, the last ones before the others,
    then an embedding and a head that are not tied. `working` is what a batch takes. Raises `UserError` where not even one
    matrix at a time fits; it names the size that does.
    """
    cuda = torch.cuda.is_available()
    device: Any = torch.cuda.current_device() if cuda else "cpu"
    taken = (0 if cuda else resident_memory()) + working + SPARE
    tensors = _sizes(model, dtype)
    parts = list(_parts(model))
    below = {name: [s for own, s in tensors.items() if f"{own}.".startswith(f"{name}.")] for name in parts}
    sizes = {name: sum(found) for name, found in below.items()}
    # What is read is in memory twice for a moment: as stored, mapped, and as `dtype`.
    largest = {name: 2 * max(found, default=0) for name, found in below.items()}
    layers = [name for name in parts if name.rpartition(".")[2].isdigit()]
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    others = [] if tied else [name for name in parts if name not in layers]
    movable = [*reversed(layers), *sorted(others, key=lambda name: sizes[name])]

    def needs(disk: list[str]) -> int:
        kept = sum(size for name, size in sizes.items() if name not in disk)
        return taken + kept + max((largest[name] for name in disk), default=0)

    disk: list[str] = []
    needed = least = needs(disk)
    for name in movable:
        if needed <= limit:
            break
        disk.append(name)
        needed = needs(disk)
        least = min(least, needed)
    if needed > limit:
        raise UserError(
            f"--memory-limit {_size(limit)} is too small for {directory}: it needs {_size(least, up=True)} with all layers "
            f"on disk, {_size(taken - working)} of it for the program and {_size(working)} for a batch; give that, or smaller "
            "batches (--batch-tokens, --max-new-tokens) or --dtype bfloat16."
        )
    where = {name: "disk" if name in disk else device for name in parts}
    return Placement(where, limit, sum(sizes[name] for name in disk), sum(sizes.values()))


def _parts(module: Any, name: str = "") -> Iterator[str]:
    """The names of layers, and of modules and weights outside of them, each with the tensors below it."""
    if not any(True for _ in module.parameters()) and not any(True for _ in module.buffers()):
        return
    if not any(isinstance(one, torch.nn.ModuleList) for one in module.modules()):
        yield name
        return
    prefix = f"{name}." if name else ""
    for own, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        yield prefix + own
    for child, inner in module.named_children():
        if isinstance(module, torch.nn.ModuleList):
            yield prefix + child
        else:
            yield from _parts(inner, prefix + child)


def _sizes(model: Any, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of every tensor by name; one that is tied counts once."""
    return {
        name: tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.itemsize)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def resident_memory() -> int:
    """Bytes of main memory that this process has now."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Lets `peak_memory` begin anew, where the system can: what is mapped while weights are read is no need of memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most bytes that this process has had since `forget_peak`: of a GPU's memory where there is one, else of main
    memory.
    """
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise UserError("--memory-limit needs /proc/self/status, which this system does not have.")


def _size(size: int, up: bool = False) -> str:
    """In the largest unit below it, to two decimals; with `up` never less than it is."""
    unit, name = next((pair for pair in UNITS if size >= pair[0]), (1, "B"))
    hundredths = -(-size * 100 // unit) if up else size * 100 // unit
    return f"{hundredths / 100:g} {name}"
