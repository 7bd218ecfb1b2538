"""The facts and verdicts as text for a terminal."""

from typing import Any

from llmforge.backends.backend import Verdict
from llmforge.backends.registry import find

GB = 1e9
RUNS = {"yes": "yes", "rehearsal": "--rehearse", "no": "no"}


def render(facts: dict[str, Any], verdicts: dict[str, Verdict]) -> str:
    """Three tables: what is here, which plugins run, and what each of them needs."""
    system, tools = facts["system"], facts["tools"]
    torch = facts["packages"]["torch"] or {}
    rows = [
        ("llmforge", f"{system['llmforge']}, Python {system['python']}, {system['platform']}"),
        ("cores", str(system["cores"])),
        ("memory", f"{system['memory'] / GB:.1f} GB, {system['memory_free'] / GB:.1f} free"),
        ("disk", f"{system['disk_free'] / GB:.1f} GB free in {system['directory']}"),
        *[(f"GPU {i}", describe_gpu(gpu)) for i, gpu in enumerate(torch.get("gpus") or [])],
    ]
    if not torch.get("gpus"):
        rows.append(("GPU", "none"))
    rows += [(name, describe_package(package)) for name, package in facts["packages"].items()]
    if "gloo" in torch:
        rows.append(("gloo", "works" if torch["gloo"] else "does not work"))
        rows.append(("NCCL", torch["nccl"] or "none"))
    rows += [(name, found or "none") for name, found in tools.items()]
    here = table(rows)
    plugins = [("plugin", "runs here", "missing, or notes")]
    for name, verdict in verdicts.items():
        plugins.append((name, RUNS[verdict.runs], "; ".join(verdict.missing + verdict.notes)))
    needed = [("plugin", "needs"), *((name, find(name).needs) for name in verdicts)]
    return f"{here}\n\n{table(plugins)}\n\n{table(needed)}"


def describe_gpu(gpu: dict[str, Any]) -> str:
    return (
        f"{gpu['name']}, {gpu['memory'] / GB:.1f} GB, {gpu['free'] / GB:.1f} free, "
        f"compute capability {gpu['capability']}"
    )


def describe_package(package: dict[str, Any] | None) -> str:
    if package is None:
        return "not installed"
    cuda = f", CUDA {package['cuda'] or 'none'}" if "cuda" in package else ""
    error = f", does not work: {package['error']}" if "error" in package else ""
    return f"{package['version']}{cuda}{error}"


def table(rows: list[Any]) -> str:
    """Columns under each other, two spaces apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(
            [*(word.ljust(width) for word, width in zip(row[:-1], widths, strict=True)), row[-1]]
        ).rstrip()
        for row in rows
    )
