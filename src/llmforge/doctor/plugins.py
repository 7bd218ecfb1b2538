"""Which plugins of `llmforge train` run on a machine, from its facts alone."""

from dataclasses import dataclass, field
from typing import Any

from llmforge.backends.colossalai import rules

NATIVE = ("native", "ddp", "fsdp")
COLOSSAL = rules.PLUGINS
HYBRID_ADAM = [plugin for plugin in COLOSSAL if plugin != rules.TORCH_DDP]
COLOSSALAI = "0.5"
INSTALL = "pip install 'llmforge[colossalai]' in an environment of its own"
NEEDS = {
    "native": "torch",
    "ddp": "torch, and gloo or NCCL",
    "fsdp": "torch, and gloo or NCCL",
    "torch_ddp": "ColossalAI 0.5, transformers 4.51.3, GPUs (or --rehearse)",
}
LIKE = "the same; for HybridAdam nvcc of torch's CUDA, CUDA_HOME and c++"


@dataclass(frozen=True)
class Verdict:
    """`runs`: "yes", "rehearsal" (with --rehearse, on the CPU) or "no".

    `missing` keeps the plugin from running; `notes` say what it does without.
    """

    runs: str
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def judge(facts: dict[str, Any]) -> dict[str, Verdict]:
    """A verdict for each plugin, in the order in which they are shown."""
    return {
        **{plugin: judge_native(plugin, facts) for plugin in NATIVE},
        **{plugin: judge_colossal(plugin, facts) for plugin in COLOSSAL},
    }


def needs(plugin: str) -> str:
    """What a plugin needs, in words."""
    return NEEDS.get(plugin, LIKE)


def refusal(plugin: str, verdict: Verdict, rehearse: bool) -> str | None:
    """The sentence that says why a plugin cannot run here; None where it can (for `rehearse`, on the CPU)."""
    if verdict.runs == "yes" or (verdict.runs == "rehearsal" and rehearse):
        return None
    if verdict.runs == "rehearsal":
        return f"--plugin {plugin} cannot run here: there is no GPU; --rehearse runs it on the CPU."
    return f"--plugin {plugin} cannot run here: {'; '.join(verdict.missing)}."


def judge_native(plugin: str, facts: dict[str, Any]) -> Verdict:
    missing = [*broken(facts, "torch"), *broken(facts, "transformers")]
    torch = facts["packages"]["torch"] or {}
    if plugin != "native" and not missing and not torch["gloo"] and not torch["nccl"]:
        missing.append("neither gloo nor NCCL works, by which processes talk")
    notes = [] if torch.get("gpus") else ["on the CPU: no GPU"]
    notes += [] if missing or not torch.get("gpus") else flash_attention(facts)
    return Verdict("no" if missing else "yes", missing, [] if missing else notes)


def judge_colossal(plugin: str, facts: dict[str, Any]) -> Verdict:
    packages = facts["packages"]
    missing = [problem for name in ("torch", "transformers", "colossalai") for problem in broken(facts, name)]
    colossalai, transformers = packages["colossalai"], packages["transformers"]
    if colossalai is None:
        missing[-1] += f" ({INSTALL})"
    elif not colossalai["version"].startswith(COLOSSALAI):
        missing.append(f"colossalai is {colossalai['version']}, not {COLOSSALAI}")
    if transformers and numbers(transformers["version"])[:2] > rules.NEWEST_TRANSFORMERS:
        missing.append(f"transformers is {transformers['version']}, newer than 4.51.3")
    if missing:
        return Verdict("no", missing)
    if not packages["torch"]["gpus"]:
        return Verdict("rehearsal", ["no GPU"])
    if not packages["torch"]["nccl"]:
        return Verdict("no", ["no NCCL, by which GPUs talk"])
    notes = flash_attention(facts) + fused_norms(facts)
    if plugin in HYBRID_ADAM and (problem := kernels(facts)):
        notes.append(f"PyTorch's AdamW for HybridAdam, whose kernels do not build: {problem}")
    return Verdict("yes", [], notes)


def broken(facts: dict[str, Any], name: str) -> list[str]:
    """Why a package cannot be used: [] where it can."""
    package = facts["packages"][name]
    if package is None:
        return [f"{name} is not installed"]
    return [f"{name} {package['version']} does not work ({package['error']})"] if "error" in package else []


def flash_attention(facts: dict[str, Any]) -> list[str]:
    problems = broken(facts, "flash-attn")
    return [f"PyTorch's own attention: {problems[0]}"] if problems else []


def fused_norms(facts: dict[str, Any]) -> list[str]:
    problems = broken(facts, "apex")
    return [f"the model's own norms: {problems[0]}"] if problems else []


def kernels(facts: dict[str, Any]) -> str | None:
    """Why ColossalAI's CUDA kernels cannot be built here; None where they can."""
    tools, cuda = facts["tools"], facts["packages"]["torch"]["cuda"]
    absent = [name for name in ("nvcc", "CUDA_HOME", "c++") if not tools[name]]
    if absent:
        return f"no {' and no '.join(absent)}"
    if numbers(tools["nvcc"])[:1] != numbers(cuda or "")[:1]:
        return f"nvcc is of CUDA {tools['nvcc']}, torch of CUDA {cuda}"
    return None


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (4, 51, 3) of 4.51.3."""
    found = []
    for word in version.split("."):
        if not word.isdigit():
            break
        found.append(int(word))
    return tuple(found)
